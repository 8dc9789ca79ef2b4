"""docs/models.md: complete, what its stamps say, and still true where engines are quick to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models import DENSE, SYMMETRIC, artifacts, drivers, opened, prompts, row_of, stale, stamps_of
from benchmarks.models_page import ENGINES, Cell, Page, Row, merged
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.family.members import MEMBERS
from quantkit.verification.recording import recorded
from tests.support.family import CONFIGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
QUICK = ("llama-cpp", "transformers")
STAMPED = ("MiniCPM4-0.5B", "MiniCPM4-3B")
"""Small ones, a tied MiniCPM and an untied Llama; `python -m benchmarks.models --check` takes all."""
RUN = {
    "MiniCPM4-0.5B": (("gguf", "q4_0", "native", SYMMETRIC), ("hf", "f32", "llama", DENSE)),
    "MiniCPM4-3B": (("gguf", "f16", "native", DENSE), ("compressed-tensors", "pack-quantized", "native", SYMMETRIC)),
    "MiniCPM-2B": (("gguf", "q4_1", "native", "int4 asym"), ("hf", "f32", "llama", DENSE)),
}
"""Rows that are run again."""


@pytest.fixture(scope="module")
def page() -> Page:
    return Page.parsed(PAGE.read_text(encoding="utf-8"))


def test_the_page_comes_back_from_its_text(page: Page) -> None:
    assert page.text() == PAGE.read_text(encoding="utf-8")


def test_every_member_that_is_taken_is_there_in_every_container_and_type(page: Page) -> None:
    models = {row.key[0] for row in page.rows}
    whole = {member.name for member in MEMBERS if member.refused is None and member.limited is None}
    assert models == whole == set(CONFIGS)
    for model in models:
        shown = {row.key[1:3] for row in page.rows if row.key[0] == model}
        if ("-", "-") in shown:
            continue  # refused as a whole, with its reason
        for container in registry.containers():
            kinds = {kind for kind in container.types if kind not in MIXED} or container.targets
            assert {kind for name, kind in shown if name == container.name} == set(kinds), (model, container.name)


def test_every_cell_is_a_figure_or_a_reason(page: Page) -> None:
    for row in page.rows:
        if not row.bits.figure:
            assert row.bits.reason, row.key
            continue
        assert row.kl.figure, row.key
        for engine in ENGINES:
            reads = row.key[1] in registry.runtime(engine).formats
            assert bool(row.engines[engine].figure or row.engines[engine].reason) == reads, (row.key, engine)


def test_every_engine_ran_every_member_in_every_kind_of_container_that_it_takes(page: Page) -> None:
    """vLLM at least one of them: it starts for a minute, and cells of an artifact that changes say that it has not."""
    taken = {row.key[0] for row in page.rows if row.bits.figure}
    wanted = {("llama-cpp", "gguf"), ("transformers", "hf"), ("transformers", "compressed-tensors")}
    wanted |= {("vllm", container) for container in ("hf", "gptq", "awq", "compressed-tensors")}
    for engine, container in wanted:
        ran = {row.key[0] for row in page.rows if row.key[1] == container and row.engines.get(engine, Cell()).figure}
        assert ran == taken or (engine == "vllm" and ran), (engine, container, taken - ran)


def test_no_row_of_the_page_is_stale(page: Page) -> None:
    lines = list(stale(page, stamps_of(STAMPED), drivers(ENGINES)))
    again = f"make these rows again: python -m benchmarks.models --model {' '.join(STAMPED)} --out docs/models.md"
    assert lines == [], again


@pytest.mark.parametrize("model", RUN)
def test_quick_engines_still_show_what_the_page_says(page: Page, model: str, tmp_path: Path) -> None:
    checkpoint = opened(model, tmp_path)
    assert isinstance(checkpoint, Checkpoint)
    golden = recorded(checkpoint, prompts(checkpoint))
    before = {row.key: row for row in page.rows}
    for key, plan in artifacts(model, checkpoint, [weights for *_, weights in RUN[model]]):
        if key[1:] not in RUN[model]:
            continue
        assert not isinstance(plan, str)
        path = publish(plan, tmp_path / f"{key[1]}-{key[2]}").path
        row, old = row_of(key, plan, path, golden, QUICK), before[key]
        assert row.bits == old.bits
        for cell, said in [(row.kl, old.kl), *((row.engines[engine], old.engines[engine]) for engine in QUICK)]:
            assert cell.reason == said.reason
            if cell.figure:
                assert float(cell.figure) <= max(2 * float(said.figure), 1e-5), key


# ---------------------------------------------------------------------------------------------- how it is put together


def row(engine: str = "vllm", figure: str = "1.0e-03", stamp: str = "a b", model: str = "MiniCPM-1B") -> Row:
    key = (model, "gptq", "v1", "native", "int4 sym")
    return Row(key, Cell("4.25"), Cell("1.0e-04", "a reason"), {engine: Cell(figure)}, stamp)


def test_cells_of_an_engine_that_did_not_run_stay_while_the_artifact_is_the_same() -> None:
    older, newer = Page((row(),), {"vllm": "0"}), Page((row("llama-cpp", "2.0e-03"),), {"llama-cpp": "1"})
    kept = merged(older, newer, ["llama-cpp"], list(CONFIGS))
    assert kept.rows[0].engines["vllm"] == Cell("1.0e-03")
    assert kept.rows[0].engines["llama-cpp"] == Cell("2.0e-03")
    assert kept.drivers == {"llama-cpp": "1", "vllm": "0"}
    changed = Page((row("llama-cpp", stamp="c d"),), {"llama-cpp": "1"})
    assert merged(older, changed, ["llama-cpp"], list(CONFIGS)).rows[0].engines["vllm"] == Cell(
        reason="vllm: not run yet"
    )


def test_models_that_did_not_run_stay_and_those_of_another_name_go() -> None:
    older = Page((row(model="MiniCPM-2B"), row(model="MiniCPM-9B"), row()), {})
    newer = Page((row(figure="9.0e-03"),), {})
    result = merged(older, newer, list(ENGINES), ["MiniCPM-1B", "MiniCPM-2B"])
    assert [row.key[0] for row in result.rows] == ["MiniCPM-1B", "MiniCPM-2B"]
    assert result.rows[0].engines["vllm"].figure == "9.0e-03"


def test_a_page_of_figures_and_reasons_comes_back_from_its_text() -> None:
    refused = Row(("MiniCPM-1B", "marlin", "ist", "native", "int4 sym"), Cell(reason="too narrow (64)"), Cell(), {}, "")
    whole = {engine: Cell("1.0e-03") if engine == "vllm" else Cell() for engine in ENGINES}
    page = Page(
        (
            Row(row().key, row().bits, row().kl, whole, "a b"),
            Row(refused.key, refused.bits, Cell(), {e: Cell() for e in ENGINES}, ""),
        ),
        drivers(["vllm"]),
    )
    assert Page.parsed(page.text()) == page


def test_a_row_made_from_something_else_is_named() -> None:
    page = Page((row(), row(model="MiniCPM-2B")), {"vllm": "0"})
    today = {row().key: "a b", ("MiniCPM-1B", "awq", "gemm", "native", "int4 sym"): "c d"}
    assert list(stale(page, today, {"vllm": "0"})) == [
        "MiniCPM-1B awq gemm native int4 sym: missing on the page, c d today"
    ]
    assert list(stale(page, {row().key: "a c"}, {"vllm": "1"})) == [
        "MiniCPM-1B gptq v1 native int4 sym: a b on the page, a c today",
        "vllm: another driver since",
    ]
    assert "missing today" in next(stale(page, {("MiniCPM-1B", *"abcd"): "c d"}, {}))

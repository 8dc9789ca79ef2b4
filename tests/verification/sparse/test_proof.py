"""Sparse attention verified: what is right passes, recorded or against the model, and what is broken is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.cli.app import main
from quantkit.errors import BadOption, GoldenMismatch, MalformedFile, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.sparse import selection
from quantkit.verification.golden import read_golden
from quantkit.verification.proof import verify
from quantkit.verification.recording import record_golden
from quantkit.verification.report import Report
from quantkit.verification.sparse import facts as sparse_facts
from quantkit.verification.sparse.oracle import sparse_oracle
from quantkit.verification.sparse.proof import SparseProof
from tests.support.tiny import write_tiny_checkpoint

SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 6,
    "dense_len": 40,
}  # fmt: skip
GIVEN: dict[str, Any] = {"attention": "sparse", "context": 300, "needs_manifest": False}


def sparse_model(folder: Path, **changes: Any) -> Path:
    return write_tiny_checkpoint(
        folder, hidden=64, intermediate=96, context=256, config_overrides={"sparse_config": {**SPARSE, **changes}}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_model(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def golden(model: Path) -> Path:
    out = model.parent / "golden.bin"
    record_golden(model, out, attention="sparse")
    return out


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The same numbers in other bytes: the embedding lies in a file of its own."""
    return exported(model, tmp_path / "copy", "hf", "f32")


def exported(model: Path, out: Path, format: str, type: str | None = None, arch: str = "native") -> Path:  # noqa: A002
    checkpoint = registry.open_checkpoint(model)
    planned = registry.exporter(format).prepare(checkpoint, ExportOptions(type=type, arch=arch))
    return publish(planned, out, inputs=checkpoint.inputs).path


def status(report: Report) -> dict[str, str]:
    return {step.name: step.status for step in report.steps}


PASSES = dict.fromkeys(("files", "identity", "numbers", "predictions", "blocks", "needle"), "passed")


def test_what_holds_the_same_numbers_passes(model: Path, golden: Path, copy: Path) -> None:
    for given in ({"golden": golden}, {"against": model}):
        report = verify(copy, **given, **GIVEN)
        assert status(report) == {**PASSES, "engine": "skipped"}, report.lines()
        assert report.checks[0].kl == 0
        (blocks,) = (step for step in report.steps if step.name == "blocks")
        compared, whole = blocks.says.split()[0], blocks.says.split()[2]
        assert compared == whole
        assert report.verdict == "files and numbers verified, not run in any engine"


@pytest.mark.parametrize("variant", ["minicpm4", "cpm.cu"])
def test_every_variant(model: Path, copy: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.runtimes.reference.sparse.variants.CpmCu.chunk", 64)
    report = verify(copy, against=model, variant=variant, **{**GIVEN, "attention": None})
    assert status(report) == {**PASSES, "engine": "skipped"}, report.lines()
    assert variant in report.checks[0].name


@pytest.mark.parametrize(("format", "type"), [("gguf", "q8_0"), ("gguf", "q4_0"), ("gguf", "f16")])
def test_what_is_quantized_or_elsewhere_passes(
    golden: Path,
    model: Path,
    tmp_path: Path,
    format: str,  # noqa: A002
    type: str,  # noqa: A002
) -> None:
    for arch in ("native", "llama"):
        report = verify(exported(model, tmp_path / arch, format, type, arch), golden=golden, **GIVEN)
        assert status(report) == {**PASSES, "engine": "skipped"}, report.lines()
        assert 0 < report.checks[0].kl < report.checks[0].comparisons[0].limit / 2  # type: ignore[operator]


def test_another_sparse_config_is_another_model(golden: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["sparse_config"]["topk"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    shutil.rmtree(copy / "quantkit.json", ignore_errors=True)
    (copy / "quantkit.json").unlink()
    report = verify(copy, golden=golden, **GIVEN)
    assert report.failed is not None
    assert report.failed.says == "sparse_config: topk is 5, the original's is 6"


def broken_top(kind: str) -> Any:
    right = selection.top

    def top(scores: np.ndarray, count: int) -> np.ndarray:
        if kind == "topk":
            return right(scores, count - 1)
        chosen = right(scores, count)
        by_score = chosen & np.isfinite(scores)
        if kind == "forced":
            return chosen & by_score
        return (chosen & ~by_score) | (np.roll(by_score, 2, axis=-1) & np.isfinite(scores))

    return top


@pytest.mark.parametrize("kind", ["topk", "block", "forced"])
def test_a_reference_that_chooses_otherwise_fails(
    kind: str, golden: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "top", broken_top(kind))
    report = verify(copy, golden=golden, **GIVEN)
    assert status(report)["predictions"] == "failed"
    assert status(report)["blocks"] == "failed"
    assert (status(report)["needle"] == "failed") == (kind != "topk"), report.lines()


def test_a_group_that_reads_another_groups_blocks_fails(
    golden: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = selection.Selection.scores
    monkeypatch.setattr(selection.Selection, "scores", lambda self, group, *rest: right(self, 1 - group, *rest))
    report = verify(copy, golden=golden, **GIVEN)
    assert status(report)["blocks"] == status(report)["predictions"] == "failed"


class GraphEngine:
    """An engine for a container that attends sparsely by itself; it may be wrong."""

    name, formats, architectures = "graph", ("hf",), ("minicpm",)

    def __init__(self, wrong: bool) -> None:
        self._oracle = sparse_oracle("minicpm4" if wrong else None)

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        return "float32"

    def open(self, path: Path) -> Any:
        session = self._oracle.open(path)
        noise = np.random.default_rng(0)

        def next_logits(ids: Sequence[int]) -> np.ndarray:
            row = session.next_logits(ids)
            return row + 1e-6 * noise.standard_normal(row.shape).astype(np.float32)

        return nullcontext(SimpleNamespace(next_logits=next_logits))


@pytest.mark.parametrize("wrong", [False, True])
def test_a_container_that_attends_sparsely_is_held_to_the_sparse_reference(
    wrong: bool, golden: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = registry.open_checkpoint
    monkeypatch.setattr(registry, "open_checkpoint", lambda path: replace(opened(path), attention="sparse"))
    monkeypatch.setattr(SparseProof, "_engine_needles", lambda *_: [])
    monkeypatch.setattr("quantkit.verification.sparse.proof.engine_of", lambda *_: GraphEngine(wrong))
    report = verify(copy, golden=golden, **{**GIVEN, "attention": None})
    assert status(report) == {**PASSES, "engine": "failed" if wrong else "passed"}, report.lines()
    with pytest.raises(BadOption, match="attends sparsely by itself"):
        verify(copy, golden=golden, **{**GIVEN, "attention": "dense"})


def test_without_an_original_the_sparse_path_is_probed(copy: Path) -> None:
    report = verify(copy, **GIVEN)
    assert status(report)["needle"] == "passed"
    assert status(report)["predictions"] == status(report)["blocks"] == "skipped"
    assert "compared with no original" in report.verdict


def test_what_cannot_be_verified_is_refused(model: Path, golden: Path, copy: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense.bin"
    record_golden(model, dense)
    assert read_golden(dense).sparse is None
    with pytest.raises(GoldenMismatch, match="nothing of sparse attention"):
        verify(copy, golden=dense, **GIVEN)
    with pytest.raises(GoldenMismatch, match=r"recorded as minicpm4\.1, not cpm\.cu"):
        verify(copy, golden=golden, variant="cpm.cu", **GIVEN)
    with pytest.raises(BadOption, match="no variant 'flash'"):
        verify(copy, golden=golden, variant="flash", **GIVEN)
    with pytest.raises(BadOption, match="no attention 'none'"):
        verify(copy, golden=golden, **{**GIVEN, "attention": "none"})
    with pytest.raises(BadOption, match="attends densely to hf"):
        verify(copy, golden=golden, engine="transformers", **GIVEN)
    with pytest.raises(BadOption, match="too short for the needle probe"):
        verify(copy, golden=golden, **{**GIVEN, "context": 20})
    plain = write_tiny_checkpoint(tmp_path / "plain", hidden=64, intermediate=96)
    with pytest.raises(UnsupportedModel, match="there is no sparse attention"):
        verify(plain, **GIVEN)
    with pytest.raises(UnsupportedModel, match="no sparse_config"):
        record_golden(plain, tmp_path / "none.bin", attention="sparse")
    assert not (tmp_path / "none.bin").exists()


def test_a_context_in_which_everything_is_seen_is_refused(tmp_path: Path) -> None:
    for number, changes in enumerate(({"topk": 64}, {"dense_len": 1 << 30}, {"kernel_size": 1 << 30})):
        model = sparse_model(tmp_path / str(number), **changes)
        for variant in ("minicpm4.1", "cpm.cu"):
            if "kernel_size" not in changes or variant == "cpm.cu":
                with pytest.raises(BadOption, match="too short for sparse attention"):
                    record_golden(model, tmp_path / "golden.bin", attention="sparse", variant=variant)


def test_nothing_is_allocated_by_a_number_of_the_config(tmp_path: Path) -> None:
    spec = registry.open_checkpoint(sparse_model(tmp_path / "model", dense_len=1 << 30)).spec
    with pytest.raises(BadOption, match="is the most that a prompt here may have"):
        sparse_facts.sparse_prompt(replace(spec, max_position_embeddings=1 << 31), sparse_oracle())


def test_what_is_recorded_is_read_back_and_damage_is_seen(model: Path, golden: Path, tmp_path: Path) -> None:
    recorded, made = (
        read_golden(golden).sparse,
        sparse_facts.sparse_facts(registry.open_checkpoint(model), sparse_oracle()),
    )
    assert recorded is not None
    assert (recorded.variant, recorded.sparse, recorded.prompt.positions) == (
        made.variant,
        made.sparse,
        made.prompt.positions,
    )
    np.testing.assert_array_equal(recorded.logits, made.logits)
    np.testing.assert_array_equal(recorded.choices.scores, made.choices.scores)
    np.testing.assert_array_equal(recorded.choices.chosen, made.choices.chosen)
    whole = golden.read_bytes()
    for name, old, new in (
        ("positions", b'"positions": [', b'"positions": [9'),
        ("topk", b'"topk": 6', b'"topk": x'),
    ):
        damaged = tmp_path / name
        damaged.write_bytes(whole.replace(old, new, 1))
        with pytest.raises((MalformedFile, GoldenMismatch)):
            read_golden(damaged)


def test_the_command_line(model: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = tmp_path / "golden.bin"
    assert main(["golden", str(model), "--out", str(golden), "--attention", "sparse", "--variant", "minicpm4"]) == 0
    capsys.readouterr()
    given = ["verify", str(copy), "--golden", str(golden), "--attention", "sparse", "--context", "300"]
    assert main([*given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in report["steps"]][3:6] == ["predictions", "blocks", "needle"]
    assert "minicpm4" in report["steps"][3]["checks"][0]["name"]

"""A graph that attends sparsely: verified without being told so, and an engine that attends densely to it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.protocols import ExportOptions
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.proof import verify
from tests.support.tiny import write_tiny_checkpoint

SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 6,
    "dense_len": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "model"
    return write_tiny_checkpoint(
        folder, hidden=64, intermediate=96, context=256, config_overrides={"sparse_config": SPARSE}
    )


@pytest.fixture(scope="module")
def graph(model: Path) -> Path:
    checkpoint = registry.open_checkpoint(model)
    planned = registry.exporter("onnx").prepare(checkpoint, ExportOptions(attention="sparse"))
    return publish(planned, model.parent / "graph", inputs=checkpoint.inputs).path


def test_it_is_held_to_the_sparse_reference(model: Path, graph: Path) -> None:
    report = verify(graph, against=model, engine="onnx-numpy", context=300)
    assert [step.status for step in report.steps] == ["passed"] * 7, report.lines()
    assert report.checks[-1].name == "onnx-numpy against sparse reference"


def test_an_engine_that_attends_densely_fails(model: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = type(registry.runtime("onnx-numpy"))
    monkeypatch.setattr(engine, "open", lambda self, path: ReferenceSession(registry.open_checkpoint(path)))
    report = verify(graph, against=model, engine="onnx-numpy", context=300)
    assert report.failed is not None
    assert report.failed.name == "engine"
    told = "\n".join((report.failed.says, *report.failed.problems))
    assert "the needle in a shroud, at token" in told
    assert "changes the output, and must not" in told

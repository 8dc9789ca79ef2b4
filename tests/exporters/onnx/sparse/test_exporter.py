"""What is written, said and refused where attention is sparse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
import onnx

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, InconsistentCheckpoint, MalformedFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.laws import check_exporter
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.quantized_models import linears, quantized_model

EXPORTER = registry.exporter("onnx")
SPARSELY = ExportOptions(attention="sparse")
INT4 = AffineGroups(bits=4, group_size=32)


def model(choice: Any = lambda _: None, **changes: Any) -> Checkpoint:
    return quantized_model(tiny_config(sparse_config={"dense_len": 32, **changes}), choice)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return publish(EXPORTER.prepare(model(linears(INT4)), SPARSELY), tmp_path / "m").path


@pytest.mark.parametrize("options", [SPARSELY, ExportOptions(attention="sparse", type="f16", ops="standard")])
@pytest.mark.parametrize("choice", [lambda _: None, linears(INT4)], ids=["dense", "int4"])
def test_the_laws_hold(choice: Any, options: ExportOptions, tmp_path: Path) -> None:
    assert check_exporter(EXPORTER, model(choice), options, tmp_path)


def test_it_says_that_it_attends_sparsely_and_leaves_out_what_genai_reads(folder: Path) -> None:
    assert EXPORTER.read(folder).attention == "sparse"
    assert not (folder / "genai_config.json").exists()
    assert json.loads((folder / "quantkit.json").read_text())["options"]["attention"] == "sparse"
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert said["quantkit.export"] == '{"attention":"sparse","context":64,"ops":"standard","type":"f32"}'
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 21}
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def test_a_dense_graph_of_the_same_model_is_what_it_was(tmp_path: Path) -> None:
    plain = memory_checkpoint(tiny_config())
    folders = [
        publish(EXPORTER.prepare(m, ExportOptions()), tmp_path / str(n)).path for n, m in enumerate((plain, model()))
    ]
    one, other = ((folder / "model.onnx").read_bytes() for folder in folders)
    assert one == other
    assert EXPORTER.read(folders[1]).attention == "dense"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attention": "dense"}, "inputs"),
        ({}, "inputs"),
        ({"attention": "flash"}, "must have a type"),
        ({"attention": "sparse", "ops": "contrib"}, "operators of ONNX alone"),
    ],
)
def test_metadata_of_another_attention_is_refused(folder: Path, said: dict[str, str], words: str) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in graph.metadata_props:
        if entry.key == "quantkit.export":
            kept = {key: value for key, value in json.loads(entry.value).items() if key != "attention"}
            entry.value = json.dumps({**kept, **said})
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises((InconsistentCheckpoint, MalformedFile), match=words):
        EXPORTER.read(folder)


def test_another_sparse_config_than_the_graphs_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["sparse_config"]["topk"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InconsistentCheckpoint):
        EXPORTER.read(folder)


@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        (memory_checkpoint(tiny_config()), SPARSELY, "no sparse_config"),
        (model(), ExportOptions(attention="sparse", ops="contrib"), "operators of ONNX alone"),
        (model(), ExportOptions(attention="flash"), "no attention 'flash'"),
    ],
)
def test_what_cannot_be_written_is_refused(checkpoint: Checkpoint, options: ExportOptions, words: str) -> None:
    with pytest.raises(BadOption, match=words) as caught:
        EXPORTER.prepare(checkpoint, options)
    assert caught.value.hint


@pytest.mark.parametrize("name", [name for name in registry.names("exporters") if name != "onnx"])
def test_containers_of_weights_have_no_attention(name: str) -> None:
    with pytest.raises(BadOption, match="engine") as caught:
        registry.exporter(name).prepare(model(), SPARSELY)
    assert "--attention" in str(caught.value.hint)

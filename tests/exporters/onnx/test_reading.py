"""Folders that were changed after they were written: each is refused in one line, and nothing outside is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import (
    IncompleteCheckpoint,
    IncompleteFile,
    InconsistentCheckpoint,
    MalformedFile,
    QuantkitError,
    UnsafePath,
    UnsupportedSpec,
)
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import tiny_config
from tests.support.opened import opened_paths
from tests.support.quantized_models import quantized_model

onnx = pytest.importorskip("onnx")

EXPORTER = registry.exporter("onnx")
DATA, GRAPH = "model.onnx.data", "model.onnx"
Change = Callable[[Any], object]
"""What is done to a graph, or to a tensor of it."""


def changed(folder: Path, change: Change) -> None:
    """Rewrite the graph of `folder`."""
    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    change(model)
    (folder / GRAPH).write_bytes(model.SerializeToString())


def external(model: Any) -> Any:
    """The first external tensor."""
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def said(key: str, value: str) -> Change:
    """Another value of one external entry."""

    def change(model: Any) -> None:
        for entry in external(model).external_data:
            if entry.key == key:
                entry.value = value

    return change


def location(value: str) -> Change:
    return said("location", value)


def added(key: str, value: str) -> Change:
    return lambda model: external(model).external_data.add(key=key, value=value)


def set_dims(model: Any, values: tuple[int, ...]) -> None:
    tensor = external(model)
    del tensor.dims[:]
    tensor.dims.extend(values)


def twice(model: Any) -> None:
    model.graph.initializer.append(external(model))


def opset(version: int, domain: str = "") -> Change:
    def change(model: Any) -> None:
        next(entry for entry in model.opset_import if entry.domain == domain).version = version

    return change


def of_node(kind: str, change: Change) -> Change:
    return lambda model: change(next(node for node in model.graph.node if node.op_type == kind))


def cycle(model: Any) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    first.input[0] = last.output[0]


def bomb(model: Any) -> None:
    """A tensor of 4.6e18 values, made when the graph is loaded."""
    size = onnx.numpy_helper.from_array(np.array([1 << 62], np.int64), "size")
    model.graph.initializer.append(size)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["size"], ["huge"]))


def sparse(model: Any) -> None:
    tensor = onnx.SparseTensorProto(values=external(model), dims=[1])
    next(e for e in tensor.values.external_data if e.key == "location").value = "../secret"
    model.graph.sparse_initializer.append(tensor)


def attribute(name: str, value: int) -> Change:
    def change(node: Any) -> None:
        next(a for a in node.attribute if a.name == name).i = value

    return change


GRAPHS: dict[str, tuple[Change, type[QuantkitError], str]] = {
    "ON04 a location above": (location("../secret"), UnsafePath, "secret"),
    "ON05 a location below and above": (location("a/../../secret"), UnsafePath, "secret"),
    "ON06 an absolute location": (location("/etc/passwd"), UnsafePath, "/etc/passwd"),
    "ON06 a location on another drive": (location("C:secret"), UnsafePath, "C:secret"),
    "ON06 a location of another machine": (location("\\\\host\\share"), UnsafePath, "host"),
    "ON10 another file": (location("nope.bin"), MalformedFile, "nope.bin"),
    "ON12 a length of a pebibyte": (said("length", str(1 << 50)), IncompleteFile, "ends at byte"),
    "ON13 a negative offset": (said("offset", "-1"), MalformedFile, "-1"),
    "ON13 a negative length": (said("length", "-1"), MalformedFile, "-1"),
    "ON14 an offset that is no number": (said("offset", "abc"), MalformedFile, "abc"),
    "ON14 an offset in other digits": (said("offset", "٣"), MalformedFile, "no number"),
    "ON14 an offset of 5000 digits": (said("offset", "9" * 5000), MalformedFile, "no number"),
    "ON15 an entry that names an attribute": (added("__class__", "x"), MalformedFile, "__class__"),
    "ON15 an entry twice": (added("offset", "0"), MalformedFile, "location"),
    "ON16 NUL in a location": (location("model.onnx.data\0x"), UnsafePath, "model.onnx.data"),
    "ON17 an empty location": (location(""), UnsafePath, "''"),
    "ON18 a location that is the folder": (location("."), UnsafePath, "'.'"),
    "ON20 a device": (location("/dev/zero"), UnsafePath, "/dev/zero"),
    "ON21 more values than bytes": (lambda m: set_dims(m, (1 << 40, 1)), InconsistentCheckpoint, "initializer"),
    "ON22 a negative size": (lambda m: set_dims(m, (-4,)), InconsistentCheckpoint, "initializer"),
    "ON23 a size beyond 2^63": (lambda m: set_dims(m, (1 << 62, 1 << 62)), InconsistentCheckpoint, "initializer"),
    "ON24 a tensor twice": (twice, InconsistentCheckpoint, "x initializer"),
    "ON25 operators of another version": (opset(999), InconsistentCheckpoint, "beside its graph"),
    "ON26 a format of another version": (lambda m: setattr(m, "ir_version", 999), InconsistentCheckpoint, "beside"),
    "ON27 operators of a stranger": (
        of_node("MatMulNBits", lambda node: setattr(node, "domain", "evil")),
        InconsistentCheckpoint,
        "node",
    ),
    "ON28 a cycle": (cycle, InconsistentCheckpoint, "node"),
    "ON29 a tensor of exabytes": (bomb, InconsistentCheckpoint, "x initializer"),
    "ON31 a sparse tensor elsewhere": (sparse, InconsistentCheckpoint, "beside"),
    "an offset of another tensor": (said("offset", "64"), InconsistentCheckpoint, "initializer"),
    "another number of heads": (
        of_node("GroupQueryAttention", attribute("num_heads", 2)),
        InconsistentCheckpoint,
        "GroupQueryAttention",
    ),
    "an operator whose inputs are rounded": (
        of_node("MatMulNBits", attribute("accuracy_level", 4)),
        InconsistentCheckpoint,
        "MatMulNBits",
    ),
    "no metadata": (lambda m: m.ClearField("metadata_props"), UnsupportedSpec, "does not say"),
    "a function": (lambda m: m.functions.add(name="f"), InconsistentCheckpoint, "beside"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_says_otherwise_is_refused(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, error, words = GRAPHS[name]
    (folder.parent / "secret").write_bytes(bytes(1 << 20))
    changed(folder, change)
    paths = opened_paths(monkeypatch)
    with pytest.raises(error) as refusal:
        EXPORTER.read(folder)
    assert words in str(refusal.value), refusal.value
    assert "\n" not in str(refusal.value)
    assert all(Path(path).parent == folder for path in paths)


def metadata(key: str, value: str) -> Change:
    def change(model: Any) -> None:
        next(entry for entry in model.metadata_props if entry.key == key).value = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("quantkit.export", "{", "not JSON"),
        ("quantkit.export", "{}", "must have a type"),
        ("quantkit.export", '{"type":"f64","ops":"contrib","context":64}', "f64"),
        ("quantkit.export", '{"type":"f32","ops":"mine","context":64}', "mine"),
        ("quantkit.export", '{"type":"f32","ops":"contrib","context":65}', "65"),
        ("quantkit.export", '{"type":"f32","ops":"contrib","context":9000000000000000000}', "9000000000000000000"),
        ("quantkit.export", '{"type":"f32","ops":"contrib","context":true}', "context"),
        ("quantkit.quantization", '{"groups":[1]}', "list of groups"),
        (
            "quantkit.quantization",
            '{"groups":[{"spec":{"bits":3,"group_size":32},"tensors":["a"]}]}',
            "no quantization",
        ),
        ("quantkit.quantization", '{"groups":[{"spec":{"bits":4,"group_size":32},"tensors":["a"]}]}', "no matrix"),
    ],
)
def test_metadata_without_sense_is_refused(key: str, value: str, words: str, folder: Path) -> None:
    changed(folder, metadata(key, value))
    with pytest.raises(MalformedFile, match=words):
        EXPORTER.read(folder)


def other_text(folder: Path) -> None:
    data = (folder / GRAPH).read_bytes()
    (folder / GRAPH).write_bytes(data.replace(b'"contrib"', b'"contri\xff"'))


def shortened(folder: Path) -> None:
    data = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(data[:-1])


def emptied(folder: Path) -> None:
    (folder / DATA).write_bytes(b"")


def lengthened(folder: Path) -> None:
    with (folder / DATA).open("ab") as file:
        file.write(b"\0")


def linked_out(folder: Path) -> None:
    (folder / DATA).rename(folder.parent / "outside")
    (folder / DATA).symlink_to(folder.parent / "outside")


def hard_linked(folder: Path) -> None:
    os.link(folder / DATA, folder.parent / "outside")


def missing(folder: Path) -> None:
    (folder / DATA).unlink()


def pipe(folder: Path) -> None:
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)


def a_folder(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).mkdir()


def empty_graph(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"")


def garbage(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"\x07garbage" * 9)


def cut(folder: Path) -> None:
    data = (folder / GRAPH).read_bytes()
    (folder / GRAPH).write_bytes(data[: len(data) // 2])


def nested(folder: Path) -> None:
    """A node's attribute that is a graph, in which a node's attribute is a graph, and so on."""
    graph = b""
    for tag in (*(0x32, 0x2A, 0x0A) * 3000, 0x3A):
        length, size = b"", len(graph)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        graph = bytes([tag]) + length + bytes([size]) + graph
    (folder / GRAPH).write_bytes(graph)


def other_table(folder: Path) -> None:
    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "rotation.cos")
    offset = int(next(entry.value for entry in table.external_data if entry.key == "offset"))
    data = bytearray((folder / DATA).read_bytes())
    data[offset + 400 : offset + 404] = np.float32(0.5).tobytes()
    (folder / DATA).write_bytes(data)


def other_end(folder: Path) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [7]
    (folder / "genai_config.json").write_text(json.dumps(config))


def other_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1 << 30}))


def other_scale(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scale_emb": 11}))


FILES: dict[str, tuple[Callable[[Path], None], type[QuantkitError], str]] = {
    "ON01 an empty graph": (empty_graph, IncompleteFile, "empty"),
    "ON02 garbage": (garbage, MalformedFile, "no ONNX graph"),
    "ON03 half a graph": (cut, MalformedFile, "no ONNX graph"),
    "metadata that is not UTF-8": (other_text, MalformedFile, "not UTF-8"),
    "ON07 a link to elsewhere": (linked_out, UnsafePath, "link to a file outside"),
    "ON09 a hard link": (hard_linked, UnsafePath, "2 names"),
    "ON10 no data": (missing, IncompleteCheckpoint, "missing"),
    "ON11 data that is short": (shortened, IncompleteFile, "ends at byte"),
    "ON11 no bytes of data": (emptied, IncompleteFile, "ends at byte"),
    "more data than there is": (lengthened, MalformedFile, "after the last tensor"),
    "ON18 data that is a folder": (a_folder, MalformedFile, "not a regular file"),
    "ON19 data that is a pipe": (pipe, MalformedFile, "not a regular file"),
    "ON33 graphs in graphs": (nested, MalformedFile, "no ONNX graph"),
    "another table of rotation": (other_table, InconsistentCheckpoint, "rotation.cos"),
    "another end token for genai": (other_end, InconsistentCheckpoint, "genai_config.json"),
    "a billion layers": (other_layers, QuantkitError, ""),
    "another scalar": (other_scale, InconsistentCheckpoint, "config.json and the graph"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_were_changed_are_refused(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, error, words = FILES[name]
    change(folder)
    paths = opened_paths(monkeypatch)
    with pytest.raises(error) as refusal:
        EXPORTER.read(folder)
    assert words in f"{refusal.value} {refusal.value.hint}", refusal.value
    assert all(Path(path).parent == folder for path in paths)


def test_a_table_may_differ_in_its_last_bit(folder: Path) -> None:
    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "rotation.cos")
    offset = int(next(entry.value for entry in table.external_data if entry.key == "offset"))
    data = bytearray((folder / DATA).read_bytes())
    data[offset + 400] ^= 1
    (folder / DATA).write_bytes(data)
    EXPORTER.read(folder)


def test_a_session_and_a_search_may_be_set_otherwise(folder: Path) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["search"] = {"max_length": 9}
    config["model"]["decoder"]["session_options"] = {"intra_op_num_threads": 2}
    (folder / "genai_config.json").write_text(json.dumps(config))
    EXPORTER.read(folder)


def test_blocks_of_a_row_that_differ_are_no_group(tmp_path: Path) -> None:
    scheme = AffineGroups(bits=4, group_size=-1)
    model = quantized_model(
        tiny_config(hidden_size=256, num_hidden_layers=1),
        lambda slot: scheme if slot.layer == 0 and len(slot.shape) > 1 else None,
    )
    out = tmp_path / "m"
    publish(EXPORTER.prepare(model, ExportOptions()), out)
    graph = onnx.load(str(out / GRAPH), load_external_data=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    scales = next(tensor for tensor in graph.graph.initializer if tensor.name == f"{name}.scales")
    assert list(scales.dims) == [256, 1]
    name = "model.layers.0.mlp.down_proj.weight"  # 96 columns in three blocks of 32
    scales = next(tensor for tensor in graph.graph.initializer if tensor.name == f"{name}.scales")
    assert list(scales.dims) == [256, 3]
    offset = int(next(entry.value for entry in scales.external_data if entry.key == "offset"))
    data = bytearray((out / DATA).read_bytes())
    data[offset + 4 : offset + 8] = np.float32(9).tobytes()
    (out / DATA).write_bytes(data)
    view = EXPORTER.read(out).weights[name]
    assert isinstance(view, QuantizedView)
    with pytest.raises(InconsistentCheckpoint, match="blocks of one group"):
        view.read()


def test_a_tied_head_of_standard_operators_is_the_embedding(tmp_path: Path) -> None:
    scheme = AffineGroups(bits=4, group_size=32)
    model = quantized_model(
        tiny_config(num_hidden_layers=1, vocab_size=64), lambda slot: scheme if len(slot.shape) > 1 else None
    )
    out = tmp_path / "m"
    publish(EXPORTER.prepare(model, ExportOptions(ops="standard")), out)
    graph = onnx.load(str(out / GRAPH), load_external_data=False)
    codes = next(tensor for tensor in graph.graph.initializer if tensor.name == "lm_head.weight.codes")
    offset = int(next(entry.value for entry in codes.external_data if entry.key == "offset"))
    data = bytearray((out / DATA).read_bytes())
    data[offset] ^= 1
    (out / DATA).write_bytes(data)
    view = EXPORTER.read(out).weights["model.embed_tokens.weight"]
    assert isinstance(view, QuantizedView)
    with pytest.raises(InconsistentCheckpoint, match="head differs from the embedding"):
        view.read()

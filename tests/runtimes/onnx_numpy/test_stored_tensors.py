"""Graphs and tensors from bytes: literal ones of the smallest case, external data that lies, and damage at random."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import IncompleteFile, MalformedFile, QuantkitError, UnsafePath, UnsupportedModel
from quantkit.runtimes.onnx_numpy.graph import StoredTensor, parse_model
from quantkit.runtimes.onnx_numpy.session import OnnxNumpySession
from quantkit.runtimes.onnx_numpy.stored_tensors import DTYPES, StoredTensors
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.opened import opened_paths
from tests.support.quantized_models import linears, quantized_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.support.onnx_graphs import write_folder  # noqa: E402


def test_the_smallest_graph_byte_by_byte():
    """y = Neg(x): ir_version 8, one node, an initializer of two floats, an output; operators 13."""
    node = b"\x0a\x01x\x12\x01y\x22\x03Neg"
    tensor = b"\x08\x02\x10\x01\x42\x01x\x4a\x08" + np.array([1.5, -2], "<f4").tobytes()
    graph = b"\x0a" + bytes([len(node)]) + node + b"\x2a" + bytes([len(tensor)]) + tensor + b"\x62\x03\x0a\x01y"
    model = parse_model(memoryview(b"\x08\x08\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x0d"))
    assert model.opsets == {"": 13}
    (found,) = model.graph.nodes
    assert (found.op_type, found.inputs, found.outputs) == ("Neg", ("x",), ("y",))
    np.testing.assert_array_equal(StoredTensors(Path("nowhere")).read(model.graph.initializers["x"]), [1.5, -2])


VALUES = [
    np.arange(-3, 3).astype(dtype).reshape(2, 3) if dtype != np.bool_ else np.array([[True, False]])
    for dtype in DTYPES.values()
    if np.dtype(dtype).kind != "u" and dtype not in (ml_dtypes.uint4, ml_dtypes.uint2, ml_dtypes.int2)
] + [np.arange(5).astype(dtype) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, ml_dtypes.uint4)]
VALUES += [np.array([-2, -1, 0, 1, 1], ml_dtypes.int2), np.array([0, 3, 2, 1, 1], ml_dtypes.uint2), np.array(7)]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: str(values.dtype))
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_are_what_onnx_reads_from_them(values, raw):
    proto = numpy_helper.from_array(values, "x")
    if not raw:
        if proto.data_type in (TensorProto.UINT2, TensorProto.INT2):
            pytest.skip("onnx's helper makes none")
        proto = helper.make_tensor("x", proto.data_type, values.shape, values.reshape(-1).tolist())
    found = StoredTensors(Path("nowhere")).read(parsed(proto))
    wanted = numpy_helper.to_array(proto)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))


def parsed(proto: Any) -> StoredTensor:
    node = helper.make_node("Neg", [proto.name], ["y"])
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")], [proto])
    model = parse_model(memoryview(helper.make_model(graph).SerializeToString()))
    return model.graph.initializers[proto.name]


# ------------------------------------------------------------------------------------------------------- external data


def external(dims: tuple[int, ...] = (4,), **said: str) -> StoredTensor:
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in said.items():
        entry = proto.external_data.add()
        entry.key, entry.value = key, value
    return parsed(proto)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(np.arange(8, dtype="<f4").tobytes())
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "hard.bin").write_bytes(bytes(64))
    os.link(folder / "hard.bin", tmp_path / "other name")
    os.mkfifo(folder / "fifo.bin")
    return folder


def test_external_data_is_read_from_its_place(folder):
    tensor = external(location="w.bin", offset="8", length="16")
    np.testing.assert_array_equal(StoredTensors(folder).read(tensor), [2, 3, 4, 5])
    np.testing.assert_array_equal(StoredTensors(folder).read(external(location="w.bin")), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"location": "../secret.bin"}, UnsafePath),
        ({"location": "sub/../../secret.bin"}, UnsafePath),
        ({"location": "/etc/passwd"}, UnsafePath),
        ({"location": "/dev/zero"}, UnsafePath),
        ({"location": "..\\secret.bin"}, UnsafePath),
        ({"location": "C:secret.bin"}, UnsafePath),
        ({"location": "w.bin\0.txt"}, UnsafePath),
        ({"location": ""}, UnsafePath),
        ({"location": "."}, UnsafePath),
        ({"location": ".."}, UnsafePath),
        ({}, UnsafePath),
        ({"location": "link.bin"}, UnsafePath),
        ({"location": "hard.bin"}, UnsafePath),
        ({"location": "sub"}, MalformedFile),
        ({"location": "fifo.bin"}, MalformedFile),
        ({"location": "nope.bin"}, QuantkitError),
        ({"location": "w.bin", "offset": "20"}, IncompleteFile),
        ({"location": "w.bin", "offset": "-1"}, MalformedFile),
        ({"location": "w.bin", "offset": "abc"}, MalformedFile),
        ({"location": "w.bin", "offset": "١"}, MalformedFile),
        ({"location": "w.bin", "offset": "9" * 30}, MalformedFile),
        ({"location": "w.bin", "length": "8"}, MalformedFile),
        ({"location": "w.bin", "length": str(1 << 50)}, MalformedFile),
        ({"location": "w.bin", "__class__": "evil"}, MalformedFile),
    ],
)
def test_external_data_that_leads_elsewhere_or_past_the_end_is_refused(said, error, folder, monkeypatch):
    opened = opened_paths(monkeypatch)
    with pytest.raises(error) as caught:
        StoredTensors(folder).read(external(**said))
    assert len(str(caught.value).splitlines()) == 1
    assert opened == []


@pytest.mark.parametrize("dims", [(-4,), (1 << 62, 1 << 62), (1 << 48,), (1,) * 9, (5,)])
def test_dimensions_that_there_cannot_be_are_refused(dims, folder):
    for said in ({"location": "w.bin", "length": "16"}, {"location": "w.bin", "offset": "16", "length": "20"}):
        with pytest.raises(MalformedFile):
            StoredTensors(folder).read(external(dims, **said))


def test_raw_data_of_another_length_is_refused():
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=bytes(16))
    with pytest.raises(MalformedFile, match="'w' needs"):
        StoredTensors(Path("nowhere")).read(parsed(proto))


def test_a_type_that_is_not_evaluated_is_named():
    proto = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    with pytest.raises(UnsupportedModel, match="type 8"):
        StoredTensors(Path("nowhere")).read(parsed(proto))


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_name_that_is_given_twice_is_refused():
    proto = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    graph = helper.make_graph([], "g", [], [], [proto, proto])
    with pytest.raises(MalformedFile, match="twice"):
        parse_model(memoryview(helper.make_model(graph).SerializeToString()))


def test_an_empty_file_holds_no_graph():
    with pytest.raises(MalformedFile, match="no graph"):
        parse_model(memoryview(b""))


def test_damage_at_random_is_refused_in_one_line_or_is_another_graph(tmp_path):
    """Bytes changed, removed, repeated; nothing but our own errors comes out, and no value is larger than allowed."""
    model = quantized_model(tiny_config(), linears(AffineGroups(bits=4, group_size=32)))
    folder = write_folder(model, tmp_path / "m", contrib=True)
    good = (folder / "model.onnx").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(150):
        data, place, length = bytearray(good), int(rng.integers(len(good))), int(rng.integers(1, 9))
        match int(rng.integers(4)):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case _:
                data[place : place + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        (folder / "model.onnx").write_bytes(data)
        try:
            with OnnxNumpySession(folder, model.spec) as session:
                session.logits([1, 5, 7])
        except QuantkitError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 100

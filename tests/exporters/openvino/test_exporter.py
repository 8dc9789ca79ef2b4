"""The bytes of the smallest cases, what lies in the folder, and what is told."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from quantkit import registry
from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.openvino.graph import Graph
from quantkit.exporters.openvino.weights import Stored, buffers, element_of, matrix
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.openvino_folders import GRIDS, everything, exported

SCALES = np.array([[0.5, -2.0]], np.float16)
HALVES = struct.pack("<2e", 0.5, -2.0)


@pytest.mark.parametrize(
    ("scheme", "codes", "zero", "wanted"),
    [
        # i4: 0 is -8, nibble 8; 15 is 7; 8 is 0. The first of two codes is the low nibble.
        (AffineGroups(bits=4, group_size=2), [0, 15, 8, 9], [8, 8], [b"\x78\x10", HALVES]),
        (AffineGroups(bits=4, group_size=2, symmetric=False), [0, 15, 8, 9], [3, 12], [b"\xf0\x98", b"\xc3", HALVES]),
        (AffineGroups(bits=8, group_size=2), [0, 255, 128, 129], [128, 128], [b"\x80\x7f\x00\x01", HALVES]),
        (AffineGroups(bits=8, group_size=2, symmetric=False), [0, 255, 1, 2], [3, 4], [b"\0\xff\1\2", b"\3\4", HALVES]),
        (AffineGroups(bits=2, group_size=2), [0, 1, 2, 3], [2, 2], [b"\xe4", b"\2", HALVES]),
        (AffineGroups(bits=2, group_size=2, ternary=True), [0, 1, 2, 1], [1, 1], [b"\x64", b"\1", HALVES]),
        (AffineGroups(bits=2, group_size=2, symmetric=False), [0, 1, 2, 3], [1, 3], [b"\xe4", b"\x0d", HALVES]),
    ],
)
def test_the_bytes_of_a_weight(scheme, codes, zero, wanted):
    stored = Stored("w", (1, 4), element_of(scheme), scheme)
    arrays = {"scale": SCALES, "zero": np.array([zero], np.uint8)}
    found = buffers(stored, QuantizedTensor(scheme, np.array([codes], np.uint8), arrays))
    assert [bytes(part) for part in found] == wanted
    assert [part.nbytes for part in stored.parts] == [len(part) for part in wanted]


def test_the_xml_of_the_smallest_graph():
    """A dense weight of two by two, and what reads it; as `openvino.serialize` words it."""
    graph = Graph(64)
    weight = matrix(graph, Stored("w", (2, 2), "f16"), 0)
    graph.add("half", "Multiply", (weight, graph.number(0.5)), ("f32", (2, 2)), names="y", auto_broadcast="numpy")
    assert bytes(graph.constants) == struct.pack("<f", 0.5)
    text = graph.xml("model", {"KEY": "0"}).decode()
    assert text.count("<layer ") == 4
    for line in (
        '<net name="model" version="11">',
        '<layer id="0" name="w" type="Const" version="opset1">',
        '<data element_type="f16" shape="2, 2" offset="0" size="8" />',
        '<data destination_type="f32" />',
        '<attribute name="decompression" version="0" />',
        '<data element_type="f32" shape="" offset="64" size="4" />',
        '<port id="2" precision="FP32" names="y">',
        '<edge from-layer="0" from-port="0" to-layer="1" to-port="0" />',
        '<edge from-layer="1" from-port="1" to-layer="3" to-port="0" />',
        '<edge from-layer="2" from-port="0" to-layer="3" to-port="1" />',
        '<KEY value="0" />',
    ):
        assert line in text


@pytest.mark.parametrize("name", GRIDS)
def test_codes_and_scales_come_back(name, tmp_path):
    """Of every matrix, embedding and head too; scales in the dtype that they had."""
    given = everything(GRIDS[name], tie_word_embeddings=False)
    back = registry.open_checkpoint(exported(given, tmp_path / "out"))
    assert back.spec == given.spec
    for weight, found in zip(given.weights.values(), back.weights.values(), strict=True):
        if isinstance(weight, QuantizedView):
            assert isinstance(found, QuantizedView)
            one, other = weight.read(), found.read()
            assert other.scale.dtype == one.scale.dtype
            assert other.scale.tobytes() == one.scale.tobytes()
            assert np.array_equal(other.codes, one.codes)
            assert np.array_equal(other.zero, one.zero)
            assert other.numbers_digest() == one.numbers_digest()


def test_weights_begin_at_multiples_of_64(tmp_path):
    path = exported(everything(GRIDS["int4-g128-asym"]), tmp_path / "out")
    text = (path / "openvino_model.xml").read_text()
    offsets = [int(part.split('"')[0]) for part in text.split(' offset="')[1:]]
    assert len(offsets) > 20
    assert all(offset % 64 == 0 for offset in offsets)


@pytest.mark.parametrize(("name", "said"), [("int2-g64-sym", True), ("ternary-g64", True), ("int4-g32-sym", False)])
def test_dynamic_quantization_is_off_where_there_are_two_bits(name, said, tmp_path):
    path = exported(everything(GRIDS[name]), tmp_path / "out")
    text = (path / "openvino_model.xml").read_text()
    assert ('<DYNAMIC_QUANTIZATION_GROUP_SIZE value="0" />' in text) == said


@pytest.mark.parametrize(
    ("kind", "dtype"), [(None, "float16"), ("f16", "float16"), ("bf16", "bfloat16"), ("f32", "float32")]
)
def test_dense_weights_have_the_type(kind, dtype, tmp_path):
    path = exported(memory_checkpoint(tiny_config()), tmp_path / "out", ExportOptions(type=kind))
    assert json.loads((path / "config.json").read_text())["torch_dtype"] == dtype
    weights = registry.open_checkpoint(path).weights.values()
    assert {weight.dtype.name for weight in weights if isinstance(weight, TensorView)} == {dtype}


def test_end_tokens_are_told_where_the_model_has_no_file_for_them(tmp_path):
    """GenAI looks for them in generation_config.json alone, and refuses to run without."""
    path = exported(memory_checkpoint(tiny_config(eos_token_id=[2, 9])), tmp_path / "out")
    assert json.loads((path / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": [2, 9]}


def test_what_it_does_not_hold_is_refused():
    exporter = registry.exporter("openvino")
    checkpoint = memory_checkpoint(tiny_config())
    with pytest.raises(BadOption, match="openvino has no type 'q4'"):
        exporter.prepare(checkpoint, ExportOptions(type="q4"))
    with pytest.raises(BadOption, match="openvino has no codes of 3 bits"):
        exporter.prepare(checkpoint, ExportOptions(bits=3))
    view = QuantizedView("model.norm.weight", (2, 2), OffsetGroups(bits=4, group_size=2), lambda: None)
    odd = everything(GRIDS["int4-g32-sym"])
    weights = {**odd.weights, "model.embed_tokens.weight": view}
    with pytest.raises(UnsupportedSpec, match="openvino holds integer codes"):
        exporter.prepare(
            type(odd)(**{f: getattr(odd, f) for f in odd.__slots__} | {"weights": weights}), ExportOptions()
        )


def test_longrope_is_explained():
    rope = {
        "rope_type": "longrope",
        "long_factor": [2.0] * 8,
        "short_factor": [1.0] * 8,
        "original_max_position_embeddings": 32,
    }
    checkpoint = memory_checkpoint(tiny_config(rope_scaling=rope))
    notes = registry.exporter("openvino").prepare(checkpoint, ExportOptions()).notes
    assert any("grows beyond 32 tokens" in note for note in notes)
    (kernel,) = registry.kernels("openvino")
    assert "grows beyond 32 tokens" in (kernel.verdict(checkpoint).remark or "")
    assert kernel.verdict(memory_checkpoint(tiny_config())).remark is None

"""The contrib operators against onnxruntime, on graphs of one node: it alone says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import MalformedFile, QuantkitError, UnsupportedModel
from quantkit.runtimes.onnx_numpy.evaluator import Evaluator
from quantkit.runtimes.onnx_numpy.graph import parse_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import helper, numpy_helper  # noqa: E402

F32, F16 = np.float32, np.float16
DOMAIN = "com.microsoft"
Values = dict[str, np.ndarray | None]


def both(op: str, inputs: Values, outputs: list[str], **attributes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What numpy and onnxruntime compute; inputs whose names end with `?` are given, others are stored."""
    proto, fed = model(op, inputs, outputs, **attributes)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    wanted = ort.InferenceSession(proto.SerializeToString(), options).run(outputs, fed)
    found = Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere")).run(fed, outputs)
    return [found[name] for name in outputs], wanted


def model(op: str, inputs: Values, outputs: list[str], **attributes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    fed = {name: value for name, value in inputs.items() if name.endswith("?") and value is not None}
    stored = [numpy_helper.from_array(v, n) for n, v in inputs.items() if v is not None and n not in fed]
    names = ["" if value is None else name for name, value in inputs.items()]
    node = helper.make_node(op, names, outputs, name="it", domain=DOMAIN, **attributes)
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in fed.items()
    ]
    graph = helper.make_graph([node], "g", described, [onnx.ValueInfoProto(name=name) for name in outputs], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), fed


def close(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one.astype(F32), other.astype(F32), tolerance, tolerance)


def weights(bits: int, N: int, K: int, block: int, zeros: str, *, dtype: Any = F32) -> Values:
    rng = np.random.default_rng(bits)
    blocks = -(-K // block)
    points = {
        "none": None,
        "packed": rng.integers(0, 256, (N, -(-blocks * bits // 8)), np.uint8),
        "floats": rng.uniform(0, 1 << bits, (N, blocks)).astype(dtype),
    }
    return {
        "A?": rng.normal(size=(2, 3, K)).astype(dtype),
        "B": rng.integers(0, 256, (N, blocks, block * bits // 8), np.uint8),
        "scales": rng.normal(0, 0.1, (N, blocks)).astype(dtype),
        "zeros": points[zeros],
    }


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "floats"])
@pytest.mark.parametrize("K", [256, 176])
def test_matmul_nbits(bits, block, zeros, K):
    if bits == 8 and zeros == "floats":
        pytest.skip("onnxruntime refuses float zero points of 8 bits")
    inputs = weights(bits, 12, K, block, zeros)
    found, wanted = both("MatMulNBits", inputs, ["y"], N=12, K=K, bits=bits, block_size=block, accuracy_level=0)
    close(found, wanted, 1e-4)


def test_matmul_nbits_in_float16_with_a_bias():
    inputs = weights(4, 12, 256, 32, "packed", dtype=F16)
    extra = {"g_idx": None, "bias": np.arange(12, dtype=F16)}
    found, wanted = both("MatMulNBits", {**inputs, **extra}, ["y"], N=12, K=256, bits=4, block_size=32)
    close(found, wanted, 4e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed"])
def test_gather_block_quantized(bits, zeros):
    given = weights(bits, 12, 128, 32, zeros)
    assert given["B"] is not None
    inputs = {"data": given["B"].reshape(12, -1), "ids?": np.array([[3, 0], [11, 3]]), "scales": given["scales"]}
    axes = {"gather_axis": 0, "quantize_axis": 1}
    found, wanted = both(
        "GatherBlockQuantized", {**inputs, "zeros": given["zeros"]}, ["y"], bits=bits, block_size=32, **axes
    )
    close(found, wanted)


@pytest.mark.parametrize("kind", [ml_dtypes.uint4, ml_dtypes.int4])
def test_codes_of_four_bits_have_the_zero_point_0_where_none_is_given(kind):
    rng = np.random.default_rng(0)
    info = ml_dtypes.iinfo(kind)
    data = rng.integers(info.min, info.max + 1, (12, 64)).astype(kind)
    inputs = {"data": data, "ids?": np.array([5, 1]), "scales": rng.normal(size=(12, 2)).astype(F32)}
    axes = {"gather_axis": 0, "quantize_axis": 1}
    found, wanted = both("GatherBlockQuantized", inputs, ["y"], block_size=32, **axes)
    close(found, wanted)


# ----------------------------------------------------------------------------------------------------------- attention

H, G, D, CONTEXT = 4, 2, 16, 32


def attention(S: int, past: int, lengths: list[int], dtype: Any = F32, *, one: bool = False) -> Values:
    rng = np.random.default_rng(S + past)
    B = len(lengths)
    q, k, v = (rng.normal(size=(B, S, n * D)).astype(dtype) for n in (H, G, G))
    angles = rng.uniform(0, 6, (CONTEXT, D // 2))
    cache = [rng.normal(size=(B, G, past, D)).astype(dtype) for _ in range(2)]
    return {
        "q?": np.concatenate([q, k, v], -1) if one else q,
        "k?": None if one else k,
        "v?": None if one else v,
        "pk?": cache[0],
        "pv?": cache[1],
        "last?": np.array(lengths, np.int32) - 1,
        "total?": np.array(S + past, np.int32),
        "cos": np.cos(angles).astype(dtype),
        "sin": np.sin(angles).astype(dtype),
    }


SIZES = {"num_heads": H, "kv_num_heads": G, "do_rotary": 1}
OUTPUTS = ["y", "present_key", "present_value"]


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("S", "past"), [(7, 0), (1, 7), (5, 7), (1, 0)])
def test_group_query_attention(S, past, one):
    close(*both("GroupQueryAttention", attention(S, past, [S + past], one=one), OUTPUTS, **SIZES))


@pytest.mark.parametrize("change", [{"do_rotary": 0}, {"rotary_interleaved": 1}, {"scale": 0.5}])
def test_group_query_attention_otherwise(change):
    close(*both("GroupQueryAttention", attention(7, 0, [7]), OUTPUTS, **{**SIZES, **change}))


def test_group_query_attention_in_float16():
    close(*both("GroupQueryAttention", attention(7, 0, [7], F16), OUTPUTS, **SIZES), tolerance=4e-3)


def test_rows_of_unlike_length_are_padded_on_the_right():
    lengths = [7, 4, 2]
    found, wanted = both("GroupQueryAttention", attention(7, 0, lengths), OUTPUTS, **SIZES)
    for row, length in enumerate(lengths):
        close([found[0][row, :length]], [wanted[0][row, :length]])
        for one, other in zip(found[1:], wanted[1:], strict=True):
            close([one[row, :, :length]], [other[row, :, :length]])


def test_a_token_that_follows_takes_the_place_behind_the_last_one_that_counts():
    lengths = [8, 5, 3]  # with the new one; seven places are there
    found, wanted = both("GroupQueryAttention", attention(1, 7, lengths), OUTPUTS, **SIZES)
    close(found[:1], wanted[:1])
    for row, length in enumerate(lengths):
        for one, other in zip(found[1:], wanted[1:], strict=True):
            close([one[row, :, :length]], [other[row, :, :length]])


def test_rotary_embedding():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 6, (CONTEXT, D // 2)).astype(F32)
    inputs = {"x?": rng.normal(size=(2, H, 5, D)).astype(F32), "places?": rng.integers(0, CONTEXT, (2, 5))}
    close(*both("RotaryEmbedding", {**inputs, "cos": np.cos(angles), "sin": np.sin(angles)}, ["y"]))


def test_skip_simplified_layer_normalization():
    rng = np.random.default_rng(0)
    inputs = {"x?": rng.normal(size=(1, 3, 8)).astype(F32), "skip?": rng.normal(size=(1, 3, 8)).astype(F32)}
    proto, fed = model("SkipSimplifiedLayerNormalization", {**inputs, "g": np.ones(8, F32)}, ["y", "", "", "z"])
    del proto.graph.output[1:3]
    found = Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere")).run(fed, ["y", "z"])
    wanted = ort.InferenceSession(proto.SerializeToString()).run(["y", "z"], fed)
    close([found["y"], found["z"]], wanted)


# ------------------------------------------------------------------------------------------------------- what is wrong


def refused(op: str, inputs: Values, outputs: list[str], **attributes: Any) -> QuantkitError:
    proto, fed = model(op, inputs, outputs, **attributes)
    with pytest.raises(QuantkitError, match=f"{op} node 'it'") as caught:
        Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere")).run(fed, outputs)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        ({"B": np.zeros((12, 8, 8), np.uint8)}, {}),
        ({"B": np.zeros((12, 8, 16), np.int8)}, {}),
        ({"scales": np.zeros((12, 7), F32)}, {}),
        ({"scales": np.zeros((12, 8), F16)}, {}),
        ({"zeros": np.zeros((12, 3), np.uint8)}, {}),
        ({"A?": np.zeros((3, 255), F32)}, {}),
        ({}, {"bits": 3}),
        ({}, {"block_size": 24}),
        ({}, {"N": 0}),
        ({}, {"K": -1}),
        ({}, {"weight_prepacked": 1}),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(change, attributes):
    sizes = {"N": 12, "K": 256, "bits": 4, "block_size": 32, **attributes}
    refused("MatMulNBits", {**weights(4, 12, 256, 32, "packed"), **change}, ["y"], **sizes)


@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        ({"last?": np.array([9], np.int32)}, {}),
        ({"last?": np.array([-5], np.int32)}, {}),
        ({"last?": np.array([6, 6], np.int32)}, {}),
        ({"total?": np.array(1 << 30, np.int32)}, {}),
        ({"pk?": np.zeros((1, G, 0, 8), F32)}, {}),
        ({"cos": np.zeros((3, D // 2), F32), "sin": np.zeros((3, D // 2), F32)}, {}),
        ({"cos": None}, {}),
        ({"k?": None}, {}),
        ({}, {"num_heads": 3}),
        ({}, {"num_heads": 0}),
    ],
)
def test_attention_that_does_not_fit_is_refused(change, attributes):
    refused("GroupQueryAttention", {**attention(7, 0, [7]), **change}, OUTPUTS, **{**SIZES, **attributes})


@pytest.mark.parametrize("attributes", [{"softcap": 30.0}, {"local_window_size": 4}, {"smooth_softmax": 1}])
def test_attention_of_another_kind_is_refused_by_name(attributes):
    error = refused("GroupQueryAttention", attention(7, 0, [7]), OUTPUTS, **{**SIZES, **attributes})
    assert isinstance(error, UnsupportedModel)
    assert next(iter(attributes)) in str(error)


def test_rows_outside_the_table_are_refused():
    inputs = {"data": np.zeros((4, 16), np.uint8), "ids?": np.array([4]), "scales": np.ones((4, 1), F32)}
    error = refused("GatherBlockQuantized", inputs, ["y"], bits=4, block_size=32, gather_axis=0, quantize_axis=1)
    assert isinstance(error, MalformedFile)

"""Each operator against onnx's reference evaluator and onnxruntime, on graphs of one node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import MalformedFile, QuantkitError, UnsupportedModel
from quantkit.runtimes.onnx_numpy.evaluator import OPERATORS, Evaluator
from quantkit.runtimes.onnx_numpy.graph import parse_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

F32, F16, I64, U8 = np.float32, np.float16, np.int64, np.uint8
RNG = np.random.default_rng(0)


def floats(*shape: int, dtype: Any = F32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


def whole(*shape: int, below: int = 7, dtype: Any = I64) -> np.ndarray:
    return RNG.integers(0, below, shape).astype(dtype)


X, Y, M = floats(2, 3, 4), floats(3, 1), floats(4, 5)
CASES: list[tuple[str, list[np.ndarray | None], dict[str, Any]]] = [
    *((op, [X, Y], {}) for op in ("Add", "Sub", "Mul", "Div", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")),
    ("Equal", [whole(3, 4), whole(4)], {}),
    ("Div", [np.array([-7, 7, -8]), np.array([2, -2, 3])], {}),
    ("Add", [X.astype(F16), Y.astype(F16)], {}),
    *((op, [X > 0, Y > 0], {}) for op in ("And", "Or")),
    *((op, [whole(9, below=200, dtype=U8), whole(9, below=200, dtype=U8)], {}) for op in ("BitwiseAnd", "BitwiseOr")),
    ("BitwiseXor", [whole(9, below=200, dtype=U8), whole(9, below=200, dtype=U8)], {}),
    *(("BitShift", [whole(9, below=200, dtype=U8), whole(9, dtype=U8)], {"direction": d}) for d in ("LEFT", "RIGHT")),
    ("Pow", [np.abs(X), np.array(2, F32)], {}),
    ("Pow", [X, ints(3)], {}),
    *((op, [np.abs(X) + 1], {}) for op in ("Sqrt", "Log", "Reciprocal")),
    *(
        (op, [X], {})
        for op in ("Neg", "Abs", "Exp", "Cos", "Sin", "Tanh", "Floor", "Ceil", "Identity", "Shape", "Size")
    ),
    ("Sigmoid", [np.concatenate([X.ravel(), [-200, 200]]).astype(F32)], {}),
    ("Not", [X > 0], {}),
    ("Min", [X, Y, floats(4)], {}),
    ("Max", [X, Y], {}),
    ("Where", [X > 0, X, Y], {}),
    ("Clip", [X, np.array(-0.5, F32), np.array(0.5, F32)], {}),
    ("Clip", [X, None, np.array(0.5, F32)], {}),
    *(("Cast", [X * 3], {"to": kind}) for kind in (TensorProto.INT32, TensorProto.FLOAT16, TensorProto.BOOL)),
    ("Cast", [X], {"to": TensorProto.DOUBLE}),
    ("CastLike", [X, ints(1)], {}),
    ("Shape", [X], {"start": 1}),
    ("Shape", [X], {"start": -2, "end": -1}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [X, ints(4, 6)], {}),
    ("Reshape", [floats(0, 3), ints(0, 3)], {"allowzero": 1}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 0, 2]}),
    ("Concat", [X, X, X[:, :1]], {"axis": 1}),
    ("Slice", [X, ints(1), ints(99), ints(-1)], {}),
    ("Slice", [X, ints(0, -2), ints(1, 99), ints(0, 2), ints(1, 1)], {}),
    ("Slice", [X, ints(-1), ints(-99), ints(2), ints(-2)], {}),
    ("Slice", [X, ints(3), ints(0), ints(2), ints(-1)], {}),
    ("Split", [M, ints(1, 4)], {"axis": 1, "outputs": 2}),
    ("Split", [M], {"num_outputs": 2, "outputs": 2}),
    ("Split", [M], {"axis": -1, "num_outputs": 3, "outputs": 3}),
    ("Squeeze", [Y], {}),
    ("Squeeze", [Y[None], ints(0, 2)], {}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Expand", [Y, ints(2, 1, 4)], {}),
    ("Tile", [Y, ints(2, 3)], {}),
    ("Range", [np.array(2), np.array(11), np.array(4)], {}),
    ("Range", [np.array(2, F32), np.array(-1, F32), np.array(-0.5, F32)], {}),
    ("Constant", [], {"value": numpy_helper.from_array(X)}),
    ("Constant", [], {"value_ints": [3, 4]}),
    ("Constant", [], {"value_float": 2.5}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": numpy_helper.from_array(ints(7))}),
    ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Gather", [M, np.array(2)], {}),
    ("ScatterND", [M, np.array([[1], [3]]), floats(2, 5)], {}),
    ("Trilu", [X], {"upper": 0}),
    ("Trilu", [X, np.array(1)], {}),
    *((op, [X, ints(-1)], {"keepdims": 0}) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    ("ReduceSum", [X], {}),
    ("ReduceSum", [whole(3, 4), ints(1)], {}),
    ("ReduceMean", [X.astype(F16), ints(0, 2)], {}),
    ("Softmax", [X], {}),
    ("Softmax", [X.astype(F16)], {"axis": 1}),
    ("CumSum", [whole(2, 5), np.array(1)], {}),
    ("Mod", [np.array([-7, 7, -8, 9]), np.array([3, -3, 4, 5])], {}),
    ("TopK", [floats(3, 9), ints(4)], {"outputs": 2}),
    ("TopK", [np.array([[1, np.inf, 0, 1, np.inf, -np.inf, 0, 1]], F32), ints(6)], {"outputs": 2}),
    ("TopK", [X, ints(0)], {"axis": 1, "outputs": 2}),
    ("MaxPool", [floats(2, 3, 12)], {"kernel_shape": [5], "strides": [4], "pads": [1, 0]}),
    ("MaxPool", [floats(1, 2, 8)], {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ("MatMul", [X, M], {}),
    ("MatMul", [X.astype(F16), M.astype(F16)], {}),
    ("MatMul", [X[0, 0], M], {}),
    ("Gemm", [X[0], M], {}),
    ("Gemm", [floats(4, 3), floats(5, 4), floats(5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
]
"""Operator, inputs, attributes."""


def codes(kind: Any, *shape: int) -> np.ndarray:
    info = ml_dtypes.iinfo(kind)
    return RNG.integers(info.min, info.max + 1, shape).astype(kind)


QUANTIZED = [
    (codes(kind, 64, 6), floats(*scales, dtype=dtype), zeros, {"axis": axis, "block_size": block})
    for kind in (ml_dtypes.uint2, ml_dtypes.int2, ml_dtypes.uint4, ml_dtypes.int4, np.uint8, np.int8)
    for dtype in (F32, F16)
    for scales, axis, block in (((4, 6), 0, 16), ((), 1, 0), ((6,), 1, 0))
    for zeros in (None, codes(kind, *scales))
]


def model(op: str, inputs: list[np.ndarray | None], attributes: dict[str, Any], **rest: Any) -> onnx.ModelProto:
    """A graph of one node whose inputs are initializers, so that types of every kind can be given."""
    attributes = dict(attributes)
    outputs = [f"y{i}" for i in range(attributes.pop("outputs", 1))]
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(op, names, outputs, name="it", **attributes, **rest)
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, inputs, strict=True) if v is not None]
    graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name=name) for name in outputs], stored)
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13)


def computed(proto: onnx.ModelProto, folder: Path = Path("nowhere")) -> list[np.ndarray]:
    names = [output.name for output in proto.graph.output]
    found = Evaluator(parse_model(memoryview(proto.SerializeToString())), folder).run({}, names)
    return [found[name] for name in names]


def by_onnxruntime(proto: onnx.ModelProto) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    found: list[np.ndarray] = ort.InferenceSession(proto.SerializeToString(), options).run(None, {})
    return found


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        precise = 2e-3 if one.dtype == F16 else 2e-6
        np.testing.assert_allclose(one.astype(np.float64), np.asarray(other, np.float64), precise, precise)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_operator_is_onnxs(case):
    op, inputs, attributes = CASES[case]
    proto = model(op, inputs, attributes)
    close(computed(proto), ReferenceEvaluator(proto).run(None, {}))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_operator_is_onnxruntimes(case):
    op, inputs, attributes = CASES[case]
    proto = model(op, inputs, attributes)
    if op in ("CastLike",) or any(x is not None and x.dtype == F16 for x in inputs):
        pytest.skip("onnxruntime takes it apart, or has no kernel of float16")
    close(computed(proto), by_onnxruntime(proto))


def test_every_operator_of_onnx_is_in_the_cases():
    elsewhere = {"DequantizeLinear", "RMSNormalization", "SimplifiedLayerNormalization"}
    assert {op for domain, op in OPERATORS if not domain} - elsewhere == {case[0] for case in CASES}


@pytest.mark.parametrize("case", QUANTIZED, ids=lambda case: f"{case[0].dtype}-{case[1].dtype}{case[1].shape}")
def test_weights_are_dequantized_as_onnx_says(case):
    values, scale, zero, attributes = case
    proto = model("DequantizeLinear", [values, scale, zero], attributes)
    close(computed(proto), ReferenceEvaluator(proto).run(None, {}))
    if not (values.dtype in (ml_dtypes.int2, ml_dtypes.uint2) and zero is None):
        close(computed(proto), by_onnxruntime(proto))


@pytest.mark.parametrize("op", ["RMSNormalization", "SimplifiedLayerNormalization"])
def test_a_norm_is_what_it_says(op):
    scale = floats(4)
    (found,) = computed(model(op, [X, scale], {"epsilon": 1e-3}))
    np.testing.assert_allclose(found, X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-3) * scale, 1e-6)


def test_a_branch_of_if_sees_what_lies_around_it():
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x", "x"], [f"{name}.y"])], name, [], [onnx.ValueInfoProto(name=f"{name}.y")]
        )
        for name, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    nodes = [
        helper.make_node("Greater", ["n", "three"], ["longer"]),
        helper.make_node("If", ["longer"], ["y"], **branches),
    ]
    inputs = [helper.make_tensor_value_info("n", TensorProto.INT64, [])]
    stored = [numpy_helper.from_array(X, "x"), numpy_helper.from_array(np.array(3), "three")]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    evaluator = Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere"))
    for number, wanted in ((4, X + X), (3, X * X)):
        np.testing.assert_array_equal(evaluator.run({"n": np.array(number)}, ["y"])["y"], wanted)


def loop(body_outputs: list[str], body_inputs: list[str], **changes: Any) -> onnx.ModelProto:
    """Adds the number of the time to a vector that is carried, and stacks what is carried times what lies around it."""
    nodes = [
        helper.make_node("Identity", ["going"], ["goes_on"]),
        helper.make_node("Cast", ["time"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["before", "number"], ["after"]),
        helper.make_node("Mul", ["after", "x"], ["stacked"]),
    ]
    kinds = {"time": TensorProto.INT64, "going": TensorProto.BOOL, "before": TensorProto.FLOAT}
    given = [helper.make_tensor_value_info(name, kinds[name], [3] if name == "before" else []) for name in body_inputs]
    kinds = {"goes_on": TensorProto.BOOL, "after": TensorProto.FLOAT, "stacked": TensorProto.FLOAT}
    made = [helper.make_tensor_value_info(name, kinds[name], None) for name in body_outputs]
    body = helper.make_graph(nodes, "body", given, made)
    node = helper.make_node("Loop", ["n", "", "start"], ["carried", "stack"], **{"body": body, **changes})
    stored = [numpy_helper.from_array(Y[:, 0], "x"), numpy_helper.from_array(np.zeros(3, F32), "start")]
    inputs = [helper.make_tensor_value_info("n", TensorProto.INT64, [])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("carried", "stack")]
    graph = helper.make_graph([node], "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


WHOLE = (["goes_on", "after", "stacked"], ["time", "going", "before"])


def test_a_loop_carries_and_stacks_as_onnxruntime_has_it():
    ort = pytest.importorskip("onnxruntime")
    proto = loop(*WHOLE)
    evaluator = Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere"))
    given = {"n": np.array(4)}
    found = evaluator.run(given, ["carried", "stack"])
    np.testing.assert_array_equal(found["carried"], np.full(3, 6, F32))
    close(list(found.values()), ort.InferenceSession(proto.SerializeToString()).run(None, given))


@pytest.mark.parametrize(
    ("proto", "times", "words"),
    [
        (loop(WHOLE[0], ["time", "going"]), 3, "before"),
        (loop(*WHOLE), 0, "does not go round"),
        (loop(*WHOLE, other=3), 3, "no graph of such a loop"),
    ],
)
def test_another_loop_is_refused(proto, times, words):
    with pytest.raises(QuantkitError, match=words):
        Evaluator(parse_model(memoryview(proto.SerializeToString())), Path("nowhere")).run(
            {"n": np.array(times)}, ["stack"]
        )


# ------------------------------------------------------------------------------------------------------- what is wrong

BAD = [
    ("TopK", [X, ints(9)], {"outputs": 2}, MalformedFile),
    ("TopK", [X, ints(1)], {"outputs": 2, "largest": 0}, MalformedFile),
    ("TopK", [whole(3), ints(1)], {"outputs": 2}, MalformedFile),
    ("MaxPool", [floats(1, 1, 9)], {"kernel_shape": [3]}, MalformedFile),
    ("MaxPool", [floats(1, 1, 9, 9)], {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [0] * 4}, MalformedFile),
    ("MaxPool", [floats(1, 1, 9)], {"kernel_shape": [3], "strides": [0], "pads": [0, 0]}, MalformedFile),
    ("MaxPool", [floats(1, 1, 9)], {"kernel_shape": [3], "strides": [1], "pads": [0, 9]}, MalformedFile),
    ("Mod", [ints(3), ints(0)], {}, MalformedFile),
    ("Mod", [X, X], {}, MalformedFile),
    ("Add", [X, M], {}, MalformedFile),
    ("Add", [X, X.astype(F16)], {}, MalformedFile),
    ("Div", [ints(1), ints(0)], {}, MalformedFile),
    ("Reshape", [X, ints(5, 5)], {}, MalformedFile),
    ("Reshape", [X, X], {}, MalformedFile),
    ("Reshape", [X], {}, MalformedFile),
    ("Concat", [X, X], {}, MalformedFile),
    ("Gather", [X, ints(9)], {}, MalformedFile),
    ("Gather", [X, X], {}, MalformedFile),
    ("MatMul", [X, X], {}, MalformedFile),
    ("Cast", [X], {"to": 8}, MalformedFile),
    ("Transpose", [X], {"perm": [0, 0, 1]}, MalformedFile),
    ("Slice", [X, ints(0), ints(1), ints(0), ints(0)], {}, MalformedFile),
    ("Split", [M, ints(1, 9)], {"axis": 1, "outputs": 2}, MalformedFile),
    ("ConstantOfShape", [ints(1 << 40, 1 << 20)], {}, MalformedFile),
    ("Expand", [Y, ints(1 << 30, 1 << 20, 4)], {}, MalformedFile),
    ("Range", [np.array(0), np.array(1 << 50), np.array(1)], {}, MalformedFile),
    ("Range", [np.array(0), np.array(9), np.array(0)], {}, MalformedFile),
    ("Tile", [M, ints(1 << 30, 1 << 30)], {}, MalformedFile),
    ("Add", [np.zeros((1 << 20, 1), F32), np.zeros((1, 1 << 20), F32)], {}, MalformedFile),
    ("MatMul", [np.zeros((1 << 20, 1), F32), np.zeros((1, 1 << 20), F32)], {}, MalformedFile),
    ("Add", [X, X], {"strange": 1}, UnsupportedModel),
    ("Neg", [X, X], {}, UnsupportedModel),
    ("NonZero", [X], {}, UnsupportedModel),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "error"), BAD, ids=[f"{i}-{c[0]}" for i, c in enumerate(BAD)])
def test_what_cannot_be_computed_is_refused_in_one_line_that_names_the_node(op, inputs, attributes, error):
    with pytest.raises(QuantkitError, match=f"{op} node 'it'") as caught:
        computed(model(op, inputs, attributes))
    assert isinstance(caught.value, error)
    assert len(str(caught.value).splitlines()) == 1

"""Every operator on graphs that the package openvino wrote, against the engine; hostile graphs get an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import EngineFailed, MalformedFile, QuantkitError
from quantkit.files.source_file import SourceFile
from quantkit.runtimes.openvino_numpy.graph import Graph
from quantkit.runtimes.openvino_numpy.operators import OPERATORS

ov = pytest.importorskip("openvino")
from openvino import opset13 as op  # noqa: E402

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
IDS = np.array([[0, 2, 1], [2, 2, 0]], np.int64)
Build = Callable[[Any, Any], Any]
"""Nodes of the float32 [2, 3, 4] and the int64 [2, 3], to a node."""


def vector(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def low_bits(values: list[int], element: Any, shape: list[int]) -> Any:
    """A constant of less than a byte an element, packed by the engine's own Tensor."""
    return ov.op.Constant(ov.Tensor(np.array(values, np.uint8), ov.Shape(shape), element))


def attention(x: Any, _: Any, **settings: Any) -> Any:
    q = op.unsqueeze(x, vector(1))
    return op.scaled_dot_product_attention(q, op.sin(q), op.cos(q), **settings)


def masked(x: Any, ids: Any) -> Any:
    q = op.unsqueeze(x, vector(1))
    mask = op.greater(op.unsqueeze(ids, vector(1, 2)), op.constant(np.int64(0)))
    return op.scaled_dot_product_attention(q, q, q, mask)


CASES: Mapping[str, Build] = {
    "Add": lambda x, _: op.add(x, op.constant(np.arange(4, dtype=np.float32))),
    "Broadcast": lambda x, _: op.broadcast(x, vector(5, 2, 3, 4)),
    "Broadcast bidirectional": lambda x, _: op.broadcast(
        op.unsqueeze(x, vector(2)), vector(1, 1, 5, 1), broadcast_spec="BIDIRECTIONAL"
    ),
    "Concat": lambda x, _: op.concat([x, x], -2),
    "Convert": lambda x, _: op.convert(op.convert(op.multiply(x, op.constant(np.float32(9))), "i32"), "f32"),
    "Cos": lambda x, _: op.cos(x),
    "Divide": lambda x, _: op.divide(op.constant(np.float32(2)), x),
    "Gather": lambda x, ids: op.gather(x, ids, op.constant(1)),
    "Greater": lambda x, _: op.convert(op.greater(x, op.constant(np.float32(0))), "f32"),
    "LessEqual": lambda _, ids: op.convert(op.less_equal(ids, op.constant(np.int64(1))), "f32"),
    "LogicalAnd": lambda x, ids: op.convert(
        op.logical_and(op.greater(ids, op.constant(np.int64(0))), op.less_equal(ids, op.constant(np.int64(1)))), "f32"
    ),
    "MatMul": lambda x, _: op.matmul(x, op.constant(X[0]), False, True),
    "MatMul transposed": lambda x, _: op.matmul(x, op.constant(X[0]), True, False),
    "Maximum": lambda x, _: op.maximum(x, op.constant(np.float32(0.3))),
    "Multiply": lambda x, _: op.multiply(x, x),
    "Power": lambda x, _: op.power(op.maximum(x, op.constant(np.float32(0.1))), op.constant(np.float32(1.7))),
    "Range": lambda x, ids: op.add(op.range(
        op.constant(np.int64(1)), op.gather(op.shape_of(ids), op.constant(1), op.constant(0)),
        op.constant(np.int64(1)), output_type="i64"), op.constant(np.int64(0))),
    "ReduceMax": lambda _, ids: op.reduce_max(ids, vector(0, 1), False),
    "ReduceMean": lambda x, _: op.reduce_mean(x, vector(-1), True),
    "Reshape": lambda x, _: op.reshape(x, vector(0, 6, -1, 2), True),
    "ScaledDotProductAttention": attention,
    "ScaledDotProductAttention causal": lambda x, ids: attention(x, ids, causal=True),
    "ScaledDotProductAttention masked": masked,
    "Select": lambda x, ids: op.select(
        op.unsqueeze(op.greater(ids, op.constant(np.int64(0))), vector(2)), x, op.constant(np.float32(7))
    ),
    "ShapeOf": lambda x, _: op.shape_of(x),
    "Sin": lambda x, _: op.sin(x),
    "Sqrt": lambda x, _: op.sqrt(op.multiply(x, x)),
    "Subtract": lambda x, _: op.subtract(x, op.constant(np.float32(3))),
    "Swish": lambda x, _: op.swish(x),
    "Transpose": lambda x, _: op.transpose(x, vector(0, 2, 1)),
    "Unsqueeze": lambda x, _: op.unsqueeze(x, vector(0, 2)),
    "VariadicSplit": lambda x, _: op.variadic_split(x, op.constant(2), vector(1, 3)).output(1),
    "i4": lambda x, _: op.add(x, op.convert(low_bits([0x78, 0x1F], ov.Type.i4, [4]), "f32")),
    "u4": lambda x, _: op.add(x, op.convert(low_bits([0x78, 0x1F], ov.Type.u4, [4]), "f32")),
    "u2": lambda x, _: op.add(x, op.convert(low_bits([0xE4], ov.Type.u2, [4]), "f32")),
    "f16": lambda x, _: op.add(x, op.convert(op.constant(np.arange(4, dtype=np.float16)), "f32")),
}  # fmt: skip


def written(path: Path, build: Build) -> tuple[Any, Graph]:
    """The graph in the engine, and what was read of the files that it wrote."""
    x, ids = op.parameter([-1, 3, 4], ov.Type.f32), op.parameter([-1, -1], ov.Type.i64)
    for parameter, name in ((x, "x"), (ids, "ids")):
        parameter.output(0).set_names({name})
    node = build(x, ids)
    result = op.result(node)
    result.output(0).set_names({"y"})
    model = ov.Model([result], [x, ids], "case")
    ov.serialize(model, str(path / "case.xml"))
    compiled = ov.Core().compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    return compiled, Graph(SourceFile.open(path / "case.xml"), SourceFile.open(path / "case.bin"))


def test_every_operator_has_a_case():
    assert set(OPERATORS) <= {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_the_engine_computes(name, tmp_path):
    compiled, graph = written(tmp_path, CASES[name])
    expected = compiled({"x": X, "ids": IDS})["y"]
    found = graph.run({"x": X, "ids": IDS}, "y")
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=2e-6, atol=2e-6)
    again = graph.run({"x": X, "ids": IDS}, "y")
    assert np.array_equal(found, again)


def test_state_moves_on_from_run_to_run(tmp_path):
    x, beams = op.parameter([-1, 2], ov.Type.f32), op.parameter([-1], ov.Type.i32)
    for parameter, name in ((x, "x"), (beams, "beams")):
        parameter.output(0).set_names({name})
    info = ov.op.util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, -1]), ov.Type.f32, "past"
    variable = ov.op.util.Variable(info)
    empty = op.broadcast(
        op.constant(np.float32(0)), op.concat([op.gather(op.shape_of(x), vector(0), op.constant(0)), vector(0)], 0)
    )
    everything = op.concat([op.gather(op.read_value(empty, variable), beams, op.constant(0)), x], 1)
    result = op.result(everything)
    result.output(0).set_names({"y"})
    ov.serialize(ov.Model([result], [op.assign(everything, variable)], [x, beams], "state"), str(tmp_path / "s.xml"))
    graph = Graph(SourceFile.open(tmp_path / "s.xml"), SourceFile.open(tmp_path / "s.bin"))
    one, two = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    order = np.array([0, 1], np.int32)
    assert np.array_equal(graph.run({"x": one, "beams": order}, "y"), one)
    assert np.array_equal(graph.run({"x": two, "beams": order[::-1]}, "y"), np.hstack([one[::-1], two]))
    graph.reset_state()
    assert np.array_equal(graph.run({"x": two, "beams": order}, "y"), two)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ('type="Sin"', 'type="Sign"', EngineFailed, "no operator 'Sign'"),
        ('to-port="1"', 'to-port="9"', EngineFailed, "nothing gives"),
        ('from-port="0"', 'from-port="9"', EngineFailed, "nothing gives"),
        ('from-layer="0"', 'from-layer="99"', EngineFailed, "nothing gives"),
        ('size="16"', 'size="12"', MalformedFile, "it needs 16"),
        ('size="16"', 'size="-16"', MalformedFile, "the size '-16'"),
        ('offset="0"', 'offset="8"', MalformedFile, "from 8 on"),
        ('shape="4"', 'shape="99999999999"', MalformedFile, "it needs"),
        ('element_type="f32" shape="4"', 'element_type="nf4" shape="4"', MalformedFile, "'nf4'"),
        ("<net", '<!DOCTYPE n [<!ENTITY a "b">]><net', MalformedFile, "document type"),
        ("</net>", "", MalformedFile, "no XML"),
        ("<layers>", "<layers>" + "<a>" * 100, MalformedFile, "deep"),
        ('<layer id="1"', '<layer id="0"', MalformedFile, "two layers"),
        ('names="y"', 'names="z"', EngineFailed, "'y'"),
    ],
)
def test_a_damaged_graph_is_refused(old, new, error, words, tmp_path):
    def build(x: Any, _: Any) -> Any:
        node = op.add(op.sin(x), op.constant(np.arange(4, dtype=np.float32)))
        node.output(0).set_names({"y"})
        return node

    written(tmp_path, build)
    text = (tmp_path / "case.xml").read_text()
    assert old in text
    (tmp_path / "case.xml").write_text(text.replace(old, new, 1))
    with pytest.raises(error, match=words):
        Graph(SourceFile.open(tmp_path / "case.xml"), SourceFile.open(tmp_path / "case.bin")).run(
            {"x": X, "ids": IDS}, "y"
        )


def test_a_missing_input_and_wrong_shapes_are_one_line(tmp_path):
    _, graph = written(tmp_path, CASES["Reshape"])
    with pytest.raises(EngineFailed, match="Parameter"):
        graph.run({"ids": IDS}, "y")
    with pytest.raises(QuantkitError, match="Reshape"):
        graph.run({"x": X[:, :, :3], "ids": IDS}, "y")

"""Rotary embedding in nodes: cos and sin of every position, and the turning of heads by them.

LongRoPE's factors, and the base of dynamic NTK, are those of the whole sequence: chosen in the graph by the largest
position of the step, over all rows, which is transformers' rule. Keys of earlier steps keep the angles that they had.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.openvino.graph import Graph, Shape, Value
from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.models.spec import ModelSpec


def tables(graph: Graph, spec: ModelSpec, positions: Value) -> tuple[Value, Value]:
    """Cos and sin [B, 1, T, D] of the int64 `positions` [B, T], times LongRoPE's attention factor."""
    half = spec.head_dim // 2
    wide = graph.add("rope/positions", "Convert", (positions,), ("f32", (-1, -1)), destination_type="f32")
    column = graph.add("rope/column", "Unsqueeze", (wide, graph.integers(2)), ("f32", (-1, -1, 1)))
    angles = _angles(graph, spec, column, positions)
    both = graph.add("rope/angles", "Concat", (angles, angles), ("f32", (-1, -1, 2 * half)), axis=-1)
    return _table(graph, spec.rope, both, "Cos"), _table(graph, spec.rope, both, "Sin")


def turned(graph: Graph, name: str, x: Value, cos: Value, sin: Value) -> Value:
    """Each pair (x_i, x_{i + D/2}) of x [B, heads, T, D] turned by its angle."""
    half = x.shape[-1] // 2
    part: Shape = (*x.shape[:-1], half)
    inputs = (x, graph.integer(3), graph.integers(half, half))  # axis -1 would keep engines from fusing
    first = graph.add(f"{name}/halves", "VariadicSplit", inputs, ("f32", part), ("f32", part))
    first, second = graph.outputs(first)
    minus = _product(graph, f"{name}/minus", second, graph.number(-1.0), part)
    crossed = graph.add(f"{name}/crossed", "Concat", (minus, first), ("f32", x.shape), axis=-1)
    along = _product(graph, f"{name}/cos", x, cos, x.shape)
    across = _product(graph, f"{name}/sin", crossed, sin, x.shape)
    return graph.add(f"{name}/turned", "Add", (along, across), ("f32", x.shape), auto_broadcast="numpy")


def _angles(graph: Graph, spec: ModelSpec, column: Value, positions: Value) -> Value:
    """Positions [B, T, 1] times one over the factors, then times the frequencies: the order of OpenBMB's code."""
    rope, half = spec.rope, spec.head_dim // 2
    shape = (-1, -1, half)
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    stretched = column
    if rope.kind == "longrope":
        stretched = _product(graph, "rope/stretched", column, _factors(graph, rope, positions), shape)
    if rope.kind == "dynamic":
        powers = graph.constant(exponent, "f32")
        base = _dynamic_base(graph, rope, spec.head_dim, positions)
        scales = graph.add("rope/scales", "Power", (base, powers), ("f32", (half,)), auto_broadcast="numpy")
        return graph.add("rope/turns", "Divide", (stretched, scales), ("f32", shape), auto_broadcast="numpy")
    frequency = np.float32(1) / np.float32(rope.theta) ** exponent
    return _product(graph, "rope/turns", stretched, graph.constant(frequency, "f32"), shape)


def _factors(graph: Graph, rope: RopeSpec, positions: Value) -> Value:
    """One over LongRoPE's factors [D/2]."""
    short, long = (np.float32(1) / np.array(part, np.float32) for part in (rope.short_factor, rope.long_factor))
    if rope.short_factor == rope.long_factor:
        return graph.constant(short, "f32")
    last = _last(graph, positions)
    inside = graph.integer(rope.original_max_position_embeddings - 1)
    beyond = graph.add("rope/beyond", "Greater", (last, inside), ("boolean", ()), auto_broadcast="numpy")
    inputs = (beyond, graph.constant(long, "f32"), graph.constant(short, "f32"))
    return graph.add("rope/factors", "Select", inputs, ("f32", short.shape), auto_broadcast="numpy")


def _dynamic_base(graph: Graph, rope: RopeSpec, head_dim: int, positions: Value) -> Value:
    """theta (factor L / original - (factor - 1))^(D / (D - 2)) for sequences of L > original tokens, else theta."""
    last = graph.add("rope/last", "Convert", (_last(graph, positions),), ("f32", ()), destination_type="f32")
    length = _scalar(graph, "rope/length", "Add", last, graph.number(1.0))
    original = graph.number(rope.original_max_position_embeddings)
    longest = _scalar(graph, "rope/longest", "Maximum", length, original)
    share = _scalar(graph, "rope/share", "Divide", longest, original)
    scaled = _scalar(graph, "rope/scaled", "Multiply", share, graph.number(rope.factor))
    stretch = _scalar(graph, "rope/stretch", "Subtract", scaled, graph.number(rope.factor - 1))
    power = _scalar(graph, "rope/power", "Power", stretch, graph.number(head_dim / (head_dim - 2)))
    return _scalar(graph, "rope/base", "Multiply", power, graph.number(rope.theta))


def _last(graph: Graph, positions: Value) -> Value:
    """The largest position of all rows."""
    return graph.add("rope/last_position", "ReduceMax", (positions, graph.integers(0, 1)), ("i64", ()), keep_dims=False)


def _table(graph: Graph, rope: RopeSpec, angles: Value, function: str) -> Value:
    name = f"rope/{function.lower()}"
    values = graph.add(name, function, (angles,), ("f32", angles.shape))
    if rope.attention_factor != 1.0:
        values = _product(graph, f"{name}/amplitude", values, graph.number(rope.attention_factor), angles.shape)
    return graph.add(f"{name}/heads", "Unsqueeze", (values, graph.integers(1)), ("f32", (-1, 1, -1, angles.shape[-1])))


def _scalar(graph: Graph, name: str, type_: str, left: Value, right: Value) -> Value:
    return graph.add(name, type_, (left, right), ("f32", ()), auto_broadcast="numpy")


def _product(graph: Graph, name: str, left: Value, right: Value, shape: Shape) -> Value:
    return graph.add(name, "Multiply", (left, right), ("f32", shape), auto_broadcast="numpy")

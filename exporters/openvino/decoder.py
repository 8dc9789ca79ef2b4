"""The forward pass in nodes, one block after the other: what OpenVINO GenAI expects of a stateful decoder.

B rows, T tokens of this step, S of it and all before, H heads, G key/value heads, D channels per head, E hidden size.

    inputs     input_ids, position_ids int64 [B, T], attention_mask int64 [B, S], beam_idx int32 [B]
    output     logits float32 [B, T, V]
    variables  past_key_values.L.key and .value, float32 [B, G, S, D]

A row of the mask is 0 where it is padded, on either side. No token sees later ones, nor padding; a token that then
sees nothing at all (padding itself) sees everything alike, so that it is not NaN. The keys of a step are turned before
they are kept. beam_idx says which row of the state each row goes on from. Sources: nodes as optimum-intel exports them;
OpenVINO `sdpa_to_paged_attention.cpp`, which GenAI applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.openvino.graph import Graph, Shape, Value
from quantkit.exporters.openvino.rope import tables, turned
from quantkit.exporters.openvino.weights import Stored, matrix
from quantkit.models.spec import EMBEDDING, FINAL_NORM, ModelSpec, Role

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Shared:
    """What every block reads: the turns of this step's positions, who sees whom, the empty state, the rows to go on."""

    cos: Value
    sin: Value
    seen: Value
    empty: Value
    beams: Value


class Decoder:
    """Builds the graph of `spec` into `graph`.

    stored: how every weight lies in the .bin. places: where it begins there.
    """

    def __init__(self, graph: Graph, spec: ModelSpec, stored: Mapping[str, Stored], places: Mapping[str, int]) -> None:
        self._graph = graph
        self._spec = spec
        self._stored = stored
        self._places = places
        self._made: dict[str, Value] = {}

    def build(self) -> None:
        """All of it, inputs to result."""
        graph, spec = self._graph, self._spec
        ids = graph.parameter("input_ids", "i64", (-1, -1))
        mask = graph.parameter("attention_mask", "i64", (-1, -1))
        positions = graph.parameter("position_ids", "i64", (-1, -1))
        beams = graph.parameter("beam_idx", "i32", (-1,))
        table = (self._weight(EMBEDDING), ids, graph.integer(0))
        x = graph.add("embedding", "Gather", table, ("f32", self._wide), opset=8, batch_dims=0)
        x = self._scaled("embedding/scaled", x, spec.scale_emb)
        seen = self._seen(ids, mask)
        cos, sin = tables(graph, spec, positions)
        shared = Shared(cos, sin, seen, self._empty(ids), beams)
        for layer in range(spec.num_hidden_layers):
            h = self._norm(f"block.{layer}/attention_norm", x, spec.weight_name(layer, Role.ATTN_NORM))
            h = self._attention(layer, h, shared)
            x = self._sum(f"block.{layer}/attention_sum", x, h)
            h = self._norm(f"block.{layer}/mlp_norm", x, spec.weight_name(layer, Role.MLP_NORM))
            x = self._sum(f"block.{layer}/mlp_sum", x, self._mlp(layer, h))
        x = self._norm("final_norm", x, FINAL_NORM)
        if spec.logit_divisor != 1.0:
            x = self._two("head/divided", "Divide", x, graph.number(spec.logit_divisor), self._wide)
        shape = (-1, -1, spec.vocab_size)
        inputs = (x, self._weight(spec.head_name))
        logits = graph.add(
            "head", "MatMul", inputs, ("f32", shape), names="logits", transpose_a=False, transpose_b=True
        )
        graph.add("logits", "Result", (logits,))

    @property
    def _wide(self) -> Shape:
        return (-1, -1, self._spec.hidden_size)

    def _weight(self, name: str) -> Value:
        """The float32 matrix or vector of a weight; the same nodes for a tied head."""
        if name not in self._made:
            self._made[name] = matrix(self._graph, self._stored[name], self._places[name])
        return self._made[name]

    def _two(self, name: str, type_: str, left: Value, right: Value, shape: Shape) -> Value:
        return self._graph.add(name, type_, (left, right), ("f32", shape), auto_broadcast="numpy")

    def _scaled(self, name: str, x: Value, factor: float) -> Value:
        return x if factor == 1.0 else self._two(name, "Multiply", x, self._graph.number(factor), x.shape)

    def _sum(self, name: str, x: Value, added: Value) -> Value:
        """x + residual_scale * added."""
        return self._two(name, "Add", x, self._scaled(f"{name}/scaled", added, self._spec.residual_scale), x.shape)

    def _norm(self, name: str, x: Value, weight: str) -> Value:
        """x / sqrt(mean(x^2) + eps) * weight."""
        graph, one = self._graph, (-1, -1, 1)
        square = self._two(f"{name}/square", "Power", x, graph.number(2.0), x.shape)
        mean = graph.add(f"{name}/mean", "ReduceMean", (square, graph.integers(-1)), ("f32", one), keep_dims=True)
        shifted = self._two(f"{name}/shifted", "Add", mean, graph.number(self._spec.rms_norm_eps), one)
        root = graph.add(f"{name}/root", "Sqrt", (shifted,), ("f32", one))
        inverse = self._two(f"{name}/inverse", "Divide", graph.number(1.0), root, one)
        normed = self._two(f"{name}/normed", "Multiply", x, inverse, x.shape)
        return self._two(name, "Multiply", normed, self._weight(weight), x.shape)

    def _linear(self, x: Value, layer: int, role: Role) -> Value:
        name = self._spec.weight_name(layer, role)
        shape = (-1, -1, self._spec.layer_shape(role)[0])
        inputs = (x, self._weight(name))
        return self._graph.add(
            f"{name.removesuffix('.weight')}/MatMul",
            "MatMul",
            inputs,
            ("f32", shape),
            transpose_a=False,
            transpose_b=True,
        )

    def _mlp(self, layer: int, h: Value) -> Value:
        gate, up = (self._linear(h, layer, role) for role in (Role.GATE, Role.UP))
        gated = self._graph.add(f"block.{layer}/silu", "Swish", (gate,), ("f32", gate.shape), opset=4)
        return self._linear(self._two(f"block.{layer}/gated", "Multiply", gated, up, up.shape), layer, Role.DOWN)

    def _attention(self, layer: int, h: Value, shared: Shared) -> Value:
        graph, spec, block = self._graph, self._spec, f"block.{layer}"
        heads, groups, size = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        q = turned(graph, f"{block}/q", self._heads(layer, h, Role.Q, heads), shared.cos, shared.sin)
        k = turned(graph, f"{block}/k", self._heads(layer, h, Role.K, groups), shared.cos, shared.sin)
        k = self._kept(layer, "key", k, shared)
        v = self._kept(layer, "value", self._heads(layer, h, Role.V, groups), shared)
        k, v = self._repeated(f"{block}/keys", k), self._repeated(f"{block}/values", v)
        shape = (-1, heads, -1, size)
        mixed = graph.add(
            f"{block}/attention",
            "ScaledDotProductAttention",
            (q, k, v, shared.seen),
            ("f32", shape),
            opset=13,
            causal=False,
        )
        order = graph.integers(0, 2, 1, 3)
        rows = graph.add(f"{block}/by_position", "Transpose", (mixed, order), ("f32", (-1, -1, heads, size)))
        inputs = (rows, graph.integers(0, 0, heads * size))
        flat = graph.add(f"{block}/joined", "Reshape", inputs, ("f32", (-1, -1, heads * size)), special_zero=True)
        return self._linear(flat, layer, Role.O)

    def _heads(self, layer: int, h: Value, role: Role, count: int) -> Value:
        """The projection of h as [B, heads, T, D]."""
        graph, name, size = self._graph, f"block.{layer}/{role.value}", self._spec.head_dim
        inputs = (self._linear(h, layer, role), graph.integers(0, 0, count, size))
        split = graph.add(f"{name}/split", "Reshape", inputs, ("f32", (-1, -1, count, size)), special_zero=True)
        order = graph.integers(0, 2, 1, 3)
        return graph.add(f"{name}/heads", "Transpose", (split, order), ("f32", (-1, count, -1, size)))

    def _kept(self, layer: int, what: str, new: Value, shared: Shared) -> Value:
        """The state of a block's keys or values with `new` behind it, which is the next state: [B, G, S, D]."""
        graph, name = self._graph, f"past_key_values.{layer}.{what}"
        _, groups, _, size = new.shape
        shape, said = (-1, groups, -1, size), {"variable_id": name}
        typed = {"variable_type": "f32", "variable_shape": f"?,{groups},?,{size}"}
        past = graph.add(f"{name}/read", "ReadValue", (shared.empty,), ("f32", shape), opset=6, **said, **typed)
        inputs = (past, shared.beams, graph.integer(0))
        chosen = graph.add(f"{name}/chosen", "Gather", inputs, ("f32", shape), opset=8, batch_dims=0)
        all_ = graph.add(f"{name}/all", "Concat", (chosen, new), ("f32", shape), axis=-2)
        graph.add(f"{name}/assign", "Assign", (all_,), ("f32", shape), opset=6, **said)
        return all_

    def _repeated(self, name: str, x: Value) -> Value:
        """Each of the G heads of x [B, G, S, D] as often as query heads read it: [B, H, S, D]."""
        graph, (_, groups, _, size), heads = self._graph, x.shape, self._spec.num_attention_heads
        times = heads // groups
        if times == 1:
            return x
        apart = graph.add(f"{name}/apart", "Unsqueeze", (x, graph.integers(2)), ("f32", (-1, groups, 1, -1, size)))
        inputs = (apart, graph.integers(1, 1, times, 1, 1))
        shape = (-1, groups, times, -1, size)
        each = graph.add(f"{name}/each", "Broadcast", inputs, ("f32", shape), opset=3, mode="bidirectional")
        inputs = (each, graph.integers(0, heads, -1, size))
        return graph.add(f"{name}/repeated", "Reshape", inputs, ("f32", (-1, heads, -1, size)), special_zero=True)

    def _length(self, name: str, x: Value, axis: int, shape: Shape) -> Value:
        """The length of an axis of x, as a scalar or a vector of one."""
        graph = self._graph
        sizes = graph.add(f"{name}/shape", "ShapeOf", (x,), ("i64", (len(x.shape),)), opset=3, output_type="i64")
        index = graph.integers(axis) if shape else graph.integer(axis)
        return graph.add(name, "Gather", (sizes, index, graph.integer(0)), ("i64", shape), opset=8, batch_dims=0)

    def _empty(self, ids: Value) -> Value:
        """Zero keys or values for each row, float32 [B, G, 0, D]: the state before the first step."""
        graph, spec = self._graph, self._spec
        groups, size = spec.num_key_value_heads, spec.head_dim
        sizes = (self._length("rows", ids, 0, (1,)), graph.integers(groups), graph.integers(0), graph.integers(size))
        shape = graph.add("empty/shape", "Concat", sizes, ("i64", (4,)), axis=0)
        inputs = (graph.number(0.0), shape)
        return graph.add("empty", "Broadcast", inputs, ("f32", (-1, groups, 0, size)), opset=3, mode="numpy")

    def _seen(self, ids: Value, mask: Value) -> Value:
        """0 where a token sees another and the lowest float32 where it does not: [B, 1, T, S]."""
        graph = self._graph
        new, total = self._length("new", ids, 1, ()), self._length("total", mask, 1, ())
        before = graph.add("before", "Subtract", (total, new), ("i64", ()), auto_broadcast="numpy")
        zero, one = graph.integer(0), graph.integer(1)
        keys, queries = (
            graph.add(name, "Range", (start, total, one), ("i64", (-1,)), opset=4, output_type="i64")
            for name, start in (("keys", zero), ("queries", before))
        )
        column = graph.add("queries/column", "Unsqueeze", (queries, graph.integers(1)), ("i64", (-1, 1)))
        earlier = graph.add("earlier", "LessEqual", (keys, column), ("boolean", (-1, -1)), auto_broadcast="numpy")
        real = graph.add("real", "Convert", (mask,), ("boolean", (-1, -1)), destination_type="boolean")
        there = graph.add("real/rows", "Unsqueeze", (real, graph.integers(1, 2)), ("boolean", (-1, 1, 1, -1)))
        shape = (-1, 1, -1, -1)
        both = graph.add("seen", "LogicalAnd", (there, earlier), ("boolean", shape), auto_broadcast="numpy")
        inputs = (both, graph.number(0.0), graph.number(LOWEST))
        return graph.add("seen/mask", "Select", inputs, ("f32", shape), auto_broadcast="numpy")

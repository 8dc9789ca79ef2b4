"""The decoder's parts in operators of ONNX alone.

    matrix      MatMul(x, DequantizeLinear(codes [K, N], axis 0)), which onnxruntime makes one MatMulNBits of
    embedding   rows of bytes, taken apart by shifts, since Gather takes no integers of less than 8 bits
    attention   MatMul, Where, Softmax, MatMul on keys and values that Concat has joined; query heads that share a
                key-value head are the rows of one matrix

Positions count the tokens of a row by the attention mask, so that rows may be padded on either side. A position that
may not be seen gets the lowest score that there is. The operator set is 21; 2 bits need 25.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.onnx.elements import ARRAYS, BOOL
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.layouts import CODES, SCALES, ZERO_POINTS, Quantized, Rows
from quantkit.exporters.onnx.places import ROTATION, Extent, Place, Places
from quantkit.exporters.onnx.settings import Settings, factor_lists
from quantkit.models.spec import EMBEDDING, ModelSpec

OPSET, OPSET_OF_2_BITS = 21, 25
END = (1 << 63) - 1
"""Past the end of every axis."""


class StandardOperators:
    """See `quantkit.exporters.onnx.graph.decoder.Operators`."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> None:
        self._graph, self._spec, self._plan, self._settings = graph, spec, plan, settings
        self._dtype = ARRAYS[settings.element]
        layouts = [place.layout for place in plan.weights.values()]
        narrow = any(
            isinstance(layout, Quantized) and not isinstance(layout, Rows) and layout.scheme.bits == 2
            for layout in layouts
        )
        self.opset = OPSET_OF_2_BITS if narrow else OPSET
        self._past = self._length("past_key_values.0.key", 2)
        self._total = self._length("attention_mask", 1)
        self._seen = self._visible()
        self._cos, self._sin = self._rotation()

    def _length(self, name: str, axis: int) -> str:
        """The length of one axis, int64 [1]."""
        return self._graph.node("Shape", (name,), start=axis, end=axis + 1)

    def _visible(self) -> str:
        """Which keys each query may see, bool [batch, 1, sequence, total]: tokens, up to its own."""
        graph, zero, one = self._graph, self._graph.integer(0), self._graph.integer(1)
        past, total = (graph.node("Squeeze", (x, graph.integers(0))) for x in (self._past, self._total))
        keys = graph.node("Unsqueeze", (graph.node("Range", (zero, total, one)), graph.integers(0)))
        queries = graph.node("Unsqueeze", (graph.node("Range", (past, total, one)), graph.integers(1)))
        causal = graph.node("LessOrEqual", (keys, queries))
        tokens = graph.node("Cast", ("attention_mask",), to=BOOL.code)
        return graph.node("And", (graph.node("Unsqueeze", (tokens, graph.integers(1, 2))), causal))

    def _rotation(self) -> tuple[str, str]:
        """cos and sin of the new tokens, [batch, 1, sequence, head_dim / 2]."""
        graph = self._graph
        counted = graph.node("CumSum", ("attention_mask", graph.integer(1)))
        positions = graph.node("Max", (graph.node("Sub", (counted, graph.integer(1))), graph.integer(0)))
        new = graph.node("Slice", (positions, self._past, self._total, graph.integers(1)))
        lists = list(factor_lists(self._spec, self._settings.context))
        found = []
        for kind in ("cos", "sin"):
            names = [f"{ROTATION}.{prefix}{kind}" for prefix in lists]
            rows = [graph.node("Gather", (graph.external(n, self._plan.rotation[n]), new), axis=0) for n in names]
            if len(rows) > 1:
                original = graph.integers(self._spec.rope.original_max_position_embeddings)
                short, long = rows
                rows = [graph.node("Where", (graph.node("Greater", (self._total, original)), long, short))]
            found.append(graph.node("Unsqueeze", (rows[0], graph.integers(1))))
        cos, sin = found
        return cos, sin

    def lookup(self, ids: str) -> str:
        """See `Operators`."""
        graph, place = self._graph, self._plan.weights[EMBEDDING]
        if not isinstance(place.layout, Quantized):
            return graph.node("Gather", (graph.external(EMBEDDING, place.extents[""]), ids), axis=0)
        layout = place.layout
        parts = {
            part: graph.node("Gather", (graph.external(EMBEDDING + part, extent), ids), axis=0)
            for part, extent in place.extents.items()
        }
        blocks = graph.integers(0, 0, layout.blocks, layout.block)
        codes = graph.node("Reshape", (self._unpacked(parts[CODES], layout.scheme.bits), blocks))
        if ZERO_POINTS in parts:
            zero = graph.node("Unsqueeze", (self._float(parts[ZERO_POINTS]), graph.integers(-1)))
        else:
            zero = graph.number(layout.scheme.midpoint, self._dtype)
        levels = graph.node("Sub", (self._float(codes), zero))
        values = graph.node("Mul", (levels, graph.node("Unsqueeze", (parts[SCALES], graph.integers(-1)))))
        return graph.node("Reshape", (values, graph.integers(0, 0, layout.shape[1])))

    def _unpacked(self, data: str, bits: int) -> str:
        """Bytes [batch, sequence, n] as codes [batch, sequence, n, 8 / bits]."""
        graph = self._graph
        column = graph.node("Unsqueeze", (data, graph.integers(-1)))
        if bits == 8:
            return column
        shifts = graph.constant(np.arange(0, 8, bits, dtype=np.uint8))
        moved = graph.node("BitShift", (column, shifts), direction="RIGHT")
        return graph.node("BitwiseAnd", (moved, graph.constant(np.array(2**bits - 1, np.uint8))))

    def _float(self, x: str) -> str:
        return self._graph.node("Cast", (x,), to=self._settings.element.code)

    def linear(self, x: str, name: str) -> str:
        """See `Operators`."""
        graph, place = self._graph, self._plan.weights[name]
        if not isinstance(place.layout, Quantized):
            return graph.dense(x, name, place.extents[""])
        tensors = [graph.external(place.name + part, extent) for part, extent in _ordered(place)]
        weight = graph.node("DequantizeLinear", tensors, axis=0, block_size=place.layout.block)
        return graph.node("MatMul", (x, weight))

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        """See `Operators`."""
        graph, spec = self._graph, self._spec
        heads, groups, size = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        q = self._turned(self._heads(q, heads))
        k, v = self._turned(self._heads(k, groups)), self._heads(v, groups)
        k, v = (
            graph.node("Concat", (f"past_key_values.{layer}.{part}", x), f"present.{layer}.{part}", axis=2)
            for part, x in (("key", k), ("value", v))
        )
        q = graph.node("Mul", (q, graph.number(size**-0.5, self._dtype)))
        q = graph.node("Reshape", (q, graph.integers(0, groups, -1, size)))
        scores = graph.node("MatMul", (q, graph.node("Transpose", (k,), perm=(0, 1, 3, 2))))
        shape = graph.node("Concat", (graph.integers(0, heads, -1), self._total), axis=0)
        lowest = graph.number(float(np.finfo(self._dtype).min), self._dtype)
        allowed = graph.node("Where", (self._seen, graph.node("Reshape", (scores, shape)), lowest))
        shares = graph.node("Softmax", (allowed,), axis=-1)
        shape = graph.node("Concat", (graph.integers(0, groups, -1), self._total), axis=0)
        mixed = graph.node("MatMul", (graph.node("Reshape", (shares, shape)), v))
        mixed = graph.node("Reshape", (mixed, graph.integers(0, heads, -1, size)))
        mixed = graph.node("Transpose", (mixed,), perm=(0, 2, 1, 3))
        return graph.node("Reshape", (mixed, graph.integers(0, 0, heads * size)))

    def _heads(self, x: str, count: int) -> str:
        """[batch, sequence, count * head_dim] as [batch, count, sequence, head_dim]."""
        shape = self._graph.integers(0, 0, count, self._spec.head_dim)
        return self._graph.node("Transpose", (self._graph.node("Reshape", (x, shape)),), perm=(0, 2, 1, 3))

    def _turned(self, x: str) -> str:
        """Each pair of channels i and i + head_dim / 2 turned by its angle."""
        graph, half = self._graph, self._spec.head_dim // 2
        first, second = (
            graph.node("Slice", (x, graph.integers(start), graph.integers(stop), graph.integers(-1)))
            for start, stop in ((0, half), (half, END))
        )
        left = [graph.node("Mul", pair) for pair in ((first, self._cos), (second, self._sin))]
        right = [graph.node("Mul", pair) for pair in ((second, self._cos), (first, self._sin))]
        return graph.node("Concat", (graph.node("Sub", left), graph.node("Add", right)), axis=-1)


def _ordered(place: Place) -> list[tuple[str, Extent]]:
    """Codes, scales and zero points, as DequantizeLinear takes them."""
    return [(part, place.extents[part]) for part in (CODES, SCALES, ZERO_POINTS) if part in place.extents]

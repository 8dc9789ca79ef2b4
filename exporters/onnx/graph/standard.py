"""The decoder's parts in operators of ONNX alone; matrices and embedding as `standard_parts.py` has them.

    attention   MatMul, Where, Softmax, MatMul on keys and values that Concat has joined; query heads that share a
                key-value head are the rows of one matrix

Positions count the tokens of a row by the attention mask, so that rows may be padded on either side. A position that
may not be seen gets the lowest score that there is.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.onnx.elements import BOOL
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.graph.standard_parts import StandardParts
from quantkit.exporters.onnx.places import Places
from quantkit.exporters.onnx.settings import Settings
from quantkit.models.spec import ModelSpec


class StandardOperators(StandardParts):
    """See `quantkit.exporters.onnx.graph.decoder.Operators`."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> None:
        super().__init__(graph, spec, plan, settings)
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
        found = []
        for kind in ("cos", "sin"):
            found.append(graph.node("Unsqueeze", (self._angles(kind, new, self._total), graph.integers(1))))
        cos, sin = found
        return cos, sin

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        """See `Operators`."""
        graph, spec = self._graph, self._spec
        heads, groups, size = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
        q = self._turned(self._heads(q, heads), self._cos, self._sin)
        k, v = self._turned(self._heads(k, groups), self._cos, self._sin), self._heads(v, groups)
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

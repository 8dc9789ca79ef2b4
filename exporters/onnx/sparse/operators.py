"""A decoder's parts where attention is sparse: matrices as in graphs of operators of ONNX alone, and `SparseAttention`.

It takes one sequence, of no padding.
"""

from __future__ import annotations

from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.graph.standard_parts import StandardParts
from quantkit.exporters.onnx.places import Places
from quantkit.exporters.onnx.settings import Settings
from quantkit.exporters.onnx.sparse.attention import SparseAttention
from quantkit.exporters.onnx.sparse.memory import Memory
from quantkit.exporters.onnx.sparse.selection import FLOAT32
from quantkit.models.spec import ModelSpec, SparseSpec


class SparseOperators(StandardParts):
    """See `quantkit.exporters.onnx.graph.decoder.Operators`."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> None:
        super().__init__(graph, spec, plan, settings)
        sparse = spec.sparse or SparseSpec()
        self._heads, self._groups = spec.num_attention_heads, spec.num_key_value_heads
        new = graph.node("Shape", ("input_ids",), start=1)
        self._memory = Memory(graph, sparse, self._groups, new)
        self._attention = SparseAttention(
            graph, sparse, self._memory, heads=self._heads, groups=self._groups, head_dim=spec.head_dim
        )
        self._unturned = self._turned_back if sparse.use_nope else None
        self._cos, self._sin = (
            graph.node("Unsqueeze", (self._angles(kind, self._memory.positions, self._memory.total), graph.integers(1)))
            for kind in ("cos", "sin")
        )

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        """See `Operators`."""
        graph, size = self._graph, self._spec.head_dim
        q, k, v = (
            graph.node("Reshape", (x, graph.integers(-1, count, size)))
            for x, count in ((q, self._heads), (k, self._groups), (v, self._groups))
        )
        turned = self._turned(q, self._cos, self._sin)
        kept = self._memory.extended(layer, self._turned(k, self._cos, self._sin), v, self._unturned)
        scaled = self._scaled(turned)
        mixed = self._attention.mixed(scaled, scaled if self._unturned is None else self._scaled(q), kept)
        return graph.node("Unsqueeze", (graph.narrowed(mixed), graph.integers(0)))

    def _scaled(self, q: str) -> str:
        """[T, H, D] times D^-0.5, float32 [T, G, R, D]."""
        graph, size = self._graph, self._spec.head_dim
        scaled = graph.node("Mul", (graph.float32(q), graph.number(size**-0.5, FLOAT32)))
        return graph.node("Reshape", (scaled, graph.integers(-1, self._groups, self._heads // self._groups, size)))

    def _turned_back(self, keys: str, positions: str) -> str:
        """Keys as they were before rotation, which is undone; see `quantkit.exporters.onnx.sparse.memory.Unturned`."""
        graph, amplitude = self._graph, self._spec.rope.attention_factor
        cos, sin = (graph.float32(self._angles(kind, positions, self._memory.total)) for kind in ("cos", "sin"))
        turned = self._turned(keys, cos, graph.node("Neg", (sin,)))
        return turned if amplitude == 1 else graph.node("Div", (turned, graph.number(amplitude**2, FLOAT32)))

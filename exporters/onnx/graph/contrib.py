"""The decoder's parts in operators of onnxruntime: MatMulNBits, GroupQueryAttention, GatherBlockQuantized.

Matrices are multiplied at accuracy level 0: inputs stay what they are. Keys are turned within GroupQueryAttention, at
positions that it counts by the attention mask: a row's tokens, padded on the right. Dense matrices go through Gemm,
which takes them untransposed. Source: schemas of onnxruntime 1.32, `core/graph/contrib_ops/contrib_defs.cc`.
"""

from __future__ import annotations

from quantkit.exporters.onnx.elements import INT32
from quantkit.exporters.onnx.graph.builder import CONTRIB_DOMAIN, Graph
from quantkit.exporters.onnx.layouts import CODES, SCALES, ZERO_POINTS, Quantized
from quantkit.exporters.onnx.places import ROTATION, Place, Places
from quantkit.exporters.onnx.settings import Settings, factor_lists
from quantkit.models.spec import EMBEDDING, ModelSpec

OPSET = 21


class ContribOperators:
    """See `quantkit.exporters.onnx.graph.decoder.Operators`."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> None:
        self._graph, self._spec, self._plan = graph, spec, plan
        self.opset = OPSET
        lengths = graph.node("ReduceSum", ("attention_mask", graph.integers(1)), keepdims=0)
        last = graph.node("Sub", (lengths, graph.integer(1)))
        self._last = graph.node("Cast", (last,), to=INT32.code)
        total = graph.node("Gather", (graph.node("Shape", ("attention_mask",)), graph.integer(1)), axis=0)
        self._total = graph.node("Cast", (total,), to=INT32.code)
        self._tables = self._chosen_tables(total, settings)

    def _chosen_tables(self, total: str, settings: Settings) -> list[str]:
        """cos and sin for a run over `total` tokens."""
        prefixes = list(factor_lists(self._spec, settings.context))
        extents = self._plan.rotation
        found = [
            [
                self._graph.external(name, extents[name])
                for name in (f"{ROTATION}.{prefix}cos", f"{ROTATION}.{prefix}sin")
            ]
            for prefix in prefixes
        ]
        if len(found) == 1:
            return found[0]
        original = self._graph.integer(self._spec.rope.original_max_position_embeddings)
        longer = self._graph.node("Greater", (total, original))
        short, long = found
        return self._graph.either(longer, long, short, next(iter(extents.values())))

    def lookup(self, ids: str) -> str:
        """See `Operators`."""
        place = self._plan.weights[EMBEDDING]
        if not isinstance(place.layout, Quantized):
            return self._graph.node("Gather", (self._graph.external(EMBEDDING, place.extents[""]), ids), axis=0)
        layout, extent = place.layout, place.extents[CODES]
        codes = self._graph.external(f"{EMBEDDING}.rows", extent, (layout.shape[0], extent.size // layout.shape[0]))
        return self._graph.node(
            "GatherBlockQuantized",
            (codes, ids, *self._parameters(place)),
            domain=CONTRIB_DOMAIN,
            bits=layout.scheme.bits,
            block_size=layout.block,
            gather_axis=0,
            quantize_axis=1,
        )

    def linear(self, x: str, name: str) -> str:
        """See `Operators`."""
        place = self._plan.weights[name]
        if not isinstance(place.layout, Quantized):
            return self._graph.dense(x, name, place.extents[""])
        codes = self._graph.external(name + CODES, place.extents[CODES])
        rows, cols = place.layout.shape
        return self._graph.node(
            "MatMulNBits",
            (x, codes, *self._parameters(place)),
            domain=CONTRIB_DOMAIN,
            K=cols,
            N=rows,
            accuracy_level=0,
            bits=place.layout.scheme.bits,
            block_size=place.layout.block,
        )

    def _parameters(self, place: Place) -> list[str]:
        """Scales, and zero points where there are any: a GatherBlockQuantized needs its indices in between."""
        return [
            self._graph.external(place.name + part, place.extents[part])
            for part in (SCALES, ZERO_POINTS)
            if part in place.extents
        ]

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        """See `Operators`."""
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        mixed = f"attention_{layer}"
        self._graph.nodes(
            "GroupQueryAttention",
            (q, k, v, *past, self._last, self._total, *self._tables),
            (mixed, f"present.{layer}.key", f"present.{layer}.value"),
            domain=CONTRIB_DOMAIN,
            num_heads=self._spec.num_attention_heads,
            kv_num_heads=self._spec.num_key_value_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return mixed

"""What graphs in operators of ONNX alone have in common: how matrices lie in them, and how heads are turned.

    matrix      MatMul(x, DequantizeLinear(codes [K, N], axis 0)), which onnxruntime makes one MatMulNBits of
    embedding   rows of bytes, taken apart by shifts, since Gather takes no integers of less than 8 bits

The operator set is 21; 2 bits need 25.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.onnx.elements import ARRAYS
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.layouts import CODES, SCALES, ZERO_POINTS, Quantized, Rows
from quantkit.exporters.onnx.places import ROTATION, Extent, Place, Places
from quantkit.exporters.onnx.settings import Settings, factor_lists
from quantkit.models.spec import EMBEDDING, ModelSpec

OPSET, OPSET_OF_2_BITS = 21, 25
END = (1 << 63) - 1
"""Past the end of every axis."""


class StandardParts:
    """The parts of `quantkit.exporters.onnx.graph.decoder.Operators` that do not concern what attention remembers."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> None:
        self._graph, self._spec, self._plan, self._settings = graph, spec, plan, settings
        self._dtype = ARRAYS[settings.element]
        layouts = [place.layout for place in plan.weights.values()]
        narrow = any(
            isinstance(layout, Quantized) and not isinstance(layout, Rows) and layout.scheme.bits == 2
            for layout in layouts
        )
        self.opset = OPSET_OF_2_BITS if narrow else OPSET

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

    def _angles(self, kind: str, positions: str, total: str) -> str:
        """The "cos" or "sin" of positions [...], [..., head_dim / 2], in a text of `total` tokens, [1]."""
        graph = self._graph
        names = [f"{ROTATION}.{prefix}{kind}" for prefix in factor_lists(self._spec, self._settings.context)]
        rows = [graph.node("Gather", (graph.external(n, self._plan.rotation[n]), positions), axis=0) for n in names]
        if len(rows) == 1:
            return rows[0]
        original = graph.integers(self._spec.rope.original_max_position_embeddings)
        short, long = rows
        return graph.node("Where", (graph.node("Greater", (total, original)), long, short))

    def _turned(self, x: str, cos: str, sin: str) -> str:
        """Each pair of channels i and i + head_dim / 2 turned by its angle."""
        graph, half = self._graph, self._spec.head_dim // 2
        first, second = (
            graph.node("Slice", (x, graph.integers(start), graph.integers(stop), graph.integers(-1)))
            for start, stop in ((0, half), (half, END))
        )
        left = [graph.node("Mul", pair) for pair in ((first, cos), (second, sin))]
        right = [graph.node("Mul", pair) for pair in ((second, cos), (first, sin))]
        return graph.node("Concat", (graph.node("Sub", left), graph.node("Add", right)), axis=-1)


def _ordered(place: Place) -> list[tuple[str, Extent]]:
    """Codes, scales and zero points, as DequantizeLinear takes them."""
    return [(part, place.extents[part]) for part in (CODES, SCALES, ZERO_POINTS) if part in place.extents]

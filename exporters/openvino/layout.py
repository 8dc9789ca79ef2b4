"""Where everything lies in openvino_model.bin, and the XML that belongs to it: both follow from the model alone.

The .bin holds the weights in the order of the model, each part of one aligned to 64 bytes, then the graph's small
constants. Given a `ModelSpec` and how each weight is stored, every byte of the XML and of the constants is determined;
`reading.py` takes a graph only if it is that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.exporters.openvino.decoder import Decoder
from quantkit.exporters.openvino.graph import Graph, aligned
from quantkit.exporters.openvino.weights import Stored
from quantkit.models.spec import ModelSpec

GRAPH_NAME = "model"
NO_DYNAMIC_QUANTIZATION = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""What 2-bit weights need: OpenVINO 2026.4 fails on them where it also rounds the inputs of their layers to int8."""


@dataclass(frozen=True, slots=True)
class Layout:
    """places: where each weight begins in the .bin. start: where the constants do. xml, constants: their bytes."""

    places: Mapping[str, int]
    start: int
    constants: bytes
    xml: bytes

    @property
    def size(self) -> int:
        """Bytes of the .bin."""
        return self.start + len(self.constants)


def lay_out(spec: ModelSpec, stored: Mapping[str, Stored]) -> Layout:
    """The layout of `spec` with its weights as `stored`, by name."""
    places, start = {}, 0
    for name, weight in stored.items():
        places[name] = start
        start += unit_bytes(weight)
    graph = Graph(start)
    Decoder(graph, spec, stored, places).build()
    options = NO_DYNAMIC_QUANTIZATION if any(weight.element == "u2" for weight in stored.values()) else {}
    return Layout(places, start, bytes(graph.constants), graph.xml(GRAPH_NAME, options))


def unit_bytes(weight: Stored) -> int:
    """Bytes that the parts of a weight take with what aligns the next one."""
    return sum(aligned(part.nbytes) for part in weight.parts)

"""Nodes of an OpenVINO graph, built in order, and the XML that says them (IR version 11).

Layers stand in topological order and are numbered by it. Inputs are ports 0, 1, ..., outputs follow. Constants that are
no weights lie one behind the other in a block of their own; equal ones lie there once. Source: OpenVINO 2026.4,
`src/core/xml_util/src/xml_serialize_util.cpp`, and what `openvino.serialize` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import quoteattr

import numpy as np

ELEMENTS = {
    "f32": "FP32",
    "f16": "FP16",
    "bf16": "BF16",
    "i64": "I64",
    "i32": "I32",
    "i8": "I8",
    "u8": "U8",
    "i4": "I4",
    "u4": "U4",
    "u2": "U2",
    "boolean": "BOOL",
}
"""Element type to the name that ports have for it."""
VERSION = 11
ALIGNMENT = 64
"""Where constants begin: engines map the file and use weights where they lie."""

Shape = tuple[int, ...]
"""Lengths of the axes, -1 where it is known at run time only."""


def aligned(size: int) -> int:
    """`size` rounded up to where the next constant begins."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Value:
    """What a node puts out: `port` of the layer `layer`."""

    layer: int
    port: int
    element: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Layer:
    """A node. names: what its one output is called, for whoever runs the graph. marked: a rt_info attribute."""

    name: str
    type: str
    opset: int
    data: Mapping[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    names: str = ""
    marked: str = ""


@dataclass(slots=True)
class Graph:
    """A graph in the making.

    start: where in the .bin its own constants begin. constants: their bytes, in order.
    """

    start: int
    layers: list[Layer] = field(default_factory=list)
    constants: bytearray = field(default_factory=bytearray)
    _places: dict[bytes, int] = field(default_factory=dict)
    _known: dict[tuple[str, Shape, bytes], Value] = field(default_factory=dict)

    def add(
        self,
        name: str,
        type_: str,
        inputs: Sequence[Value],
        *outputs: tuple[str, Shape],
        opset: int = 1,
        names: str = "",
        marked: str = "",
        **data: str | int | bool,
    ) -> Value:
        """Append a node; returns its first output, whose siblings are its later ports."""
        index = len(self.layers)
        values = tuple(
            Value(index, len(inputs) + port, element, shape) for port, (element, shape) in enumerate(outputs)
        )
        said = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in data.items()}
        self.layers.append(Layer(name, type_, opset, said, tuple(inputs), values, names, marked))
        return values[0] if values else Value(index, 0, "", ())

    def outputs(self, value: Value) -> tuple[Value, ...]:
        """Every output of the node that `value` belongs to."""
        return self.layers[value.layer].outputs

    def parameter(self, name: str, element: str, shape: Shape) -> Value:
        """An input of the graph."""
        return self.add(
            name, "Parameter", (), (element, shape), names=name, shape=_partial(shape), element_type=element
        )

    def stored(self, name: str, element: str, shape: Shape, *, offset: int, size: int) -> Value:
        """A constant whose bytes lie at `offset` of the .bin."""
        said = ", ".join(map(str, shape))
        result = (element, shape)
        return self.add(name, "Const", (), result, element_type=element, shape=said, offset=offset, size=size)

    def constant(self, values: np.ndarray, element: str) -> Value:
        """A small constant, whose bytes are kept in `constants`; the same node for equal ones."""
        raw = np.ascontiguousarray(values).tobytes()
        key = (element, values.shape, raw)
        if key not in self._known:
            if raw not in self._places:
                self.constants += bytes(aligned(len(self.constants)) - len(self.constants))
                self._places[raw] = len(self.constants)
                self.constants += raw
            offset = self.start + self._places[raw]
            name = f"constant.{len(self._known)}"
            self._known[key] = self.stored(name, element, values.shape, offset=offset, size=len(raw))
        return self._known[key]

    def integers(self, *values: int) -> Value:
        """A vector of int64."""
        return self.constant(np.array(values, "<i8"), "i64")

    def integer(self, value: int) -> Value:
        """A scalar of int64."""
        return self.constant(np.array(value, "<i8"), "i64")

    def number(self, value: float) -> Value:
        """A scalar of float32."""
        return self.constant(np.array(value, "<f4"), "f32")

    def xml(self, name: str, options: Mapping[str, str]) -> bytes:
        """The whole graph as XML; `options` are settings that the runtime takes with it."""
        lines = ['<?xml version="1.0"?>', f'<net name={quoteattr(name)} version="{VERSION}">', "\t<layers>"]
        for index, layer in enumerate(self.layers):
            lines += _layer_lines(index, layer)
        lines += ["\t</layers>", "\t<edges>"]
        for index, layer in enumerate(self.layers):
            for port, value in enumerate(layer.inputs):
                ends = f'from-layer="{value.layer}" from-port="{value.port}" to-layer="{index}" to-port="{port}"'
                lines.append(f"\t\t<edge {ends} />")
        lines += ["\t</edges>", "\t<rt_info>"]
        if options:
            said = [f"\t\t\t<{key} value={quoteattr(value)} />" for key, value in options.items()]
            lines += ["\t\t<runtime_options>", *said, "\t\t</runtime_options>"]
        lines += ["\t</rt_info>", "</net>", ""]
        return "\n".join(lines).encode()


def _partial(shape: Shape) -> str:
    return ",".join("?" if length < 0 else str(length) for length in shape)


def _layer_lines(index: int, layer: Layer) -> list[str]:
    tag = f'id="{index}" name={quoteattr(layer.name)} type="{layer.type}" version="opset{layer.opset}"'
    lines = [f"\t\t<layer {tag}>"]
    if layer.data:
        lines.append(f"\t\t\t<data {' '.join(f'{key}={quoteattr(value)}' for key, value in layer.data.items())} />")
    if layer.marked:
        lines += ["\t\t\t<rt_info>", f'\t\t\t\t<attribute name="{layer.marked}" version="0" />', "\t\t\t</rt_info>"]
    for tag, values in (("input", layer.inputs), ("output", layer.outputs)):
        if values:
            first = len(layer.inputs) if tag == "output" else 0
            lines += [f"\t\t\t<{tag}>"]
            for port, value in enumerate(values, first):
                lines += _port_lines(port, value, layer.names if tag == "output" else "")
            lines += [f"\t\t\t</{tag}>"]
    return [*lines, "\t\t</layer>"]


def _port_lines(port: int, value: Value, names: str) -> list[str]:
    called = f" names={quoteattr(names)}" if names else ""
    tag = f'<port id="{port}" precision="{ELEMENTS[value.element]}"{called}'
    if not value.shape:
        return [f"\t\t\t\t{tag} />"]
    dims = [f"\t\t\t\t\t<dim>{length}</dim>" for length in value.shape]
    return [f"\t\t\t\t{tag}>", *dims, "\t\t\t\t</port>"]

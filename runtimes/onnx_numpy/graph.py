"""A `model.onnx` as data: nodes, stored tensors and names, read from the protobuf without the package `onnx`.

Field numbers are those of `onnx.proto`. What changes the function and is not evaluated (functions of the model's own,
sparse tensors, training graphs) is refused; what does not (names, documentation, metadata, quantization annotations) is
passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from quantkit.errors import MalformedFile, UnsupportedModel
from quantkit.runtimes.onnx_numpy.wire import bytes_of, fields, float_of, signed, signed_run, text_of

MOST_DEPTH = 8
"""Graphs inside graphs: branches of `If`."""
MOST_NODES = 1_000_000
EXTERNAL = 1
"""Of `TensorProto.DataLocation`."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A `TensorProto`.

    data_type: of `TensorProto.DataType`. raw: `raw_data`, little-endian. integers, floats, doubles: the typed fields,
    of which one may stand in its place. external: where the bytes lie, "location", "offset", "length"; None = here.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    raw: memoryview | None
    integers: tuple[int, ...]
    floats: tuple[float, ...]
    doubles: memoryview | None
    external: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. An empty name among the inputs or outputs is one that is left out."""

    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object]

    def __str__(self) -> str:
        """As messages name it."""
        kind = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        return f"{kind} node {self.name or '/'.join(filter(None, self.outputs))!r}"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can be computed.

    inputs: name to `TensorProto.DataType` of its values, 0 = it does not say; without those that are initializers.
    """

    nodes: tuple[Node, ...]
    initializers: Mapping[str, StoredTensor]
    inputs: Mapping[str, int]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A `ModelProto`. opsets: domain to version; "" is ONNX's own."""

    opsets: Mapping[str, int]
    graph: Graph


@dataclass(slots=True)
class _Parts:
    nodes: list[Node] = field(default_factory=list)
    initializers: dict[str, StoredTensor] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)


def parse_model(data: memoryview) -> Model:
    """Read a `ModelProto`.

    Raises:
        MalformedFile, IncompleteFile: no such protobuf. UnsupportedModel: something in it that would be left out.
    """
    opsets: dict[str, int] = {}
    graph: Graph | None = None
    for number, _, value in fields(data):
        if number == 7:
            if graph is not None:
                raise MalformedFile("it has two graphs")
            graph = _graph(bytes_of(value), 0)
        elif number == 8:
            domain, version = _opset(bytes_of(value))
            opsets["" if domain == "ai.onnx" else domain] = version
        elif number in (20, 25):
            raise UnsupportedModel(f"it has {'a training graph' if number == 20 else 'functions of its own'}")
    if graph is None:
        raise MalformedFile("no graph in the file")
    return Model(opsets, graph)


def _opset(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, value in fields(message):
        if number == 1:
            domain = text_of(value)
        elif number == 2:
            version = signed(value)
    return domain, version


def _graph(message: memoryview, depth: int) -> Graph:
    if depth > MOST_DEPTH:
        raise MalformedFile(f"graphs inside graphs deeper than {MOST_DEPTH}")
    parts = _Parts()
    for number, _, value in fields(message):
        if number == 1:
            parts.nodes.append(_node(bytes_of(value), depth))
        elif number == 5:
            tensor = _tensor(bytes_of(value))
            if tensor.name in parts.initializers:
                raise MalformedFile(f"initializer {tensor.name!r} is listed twice")
            parts.initializers[tensor.name] = tensor
        elif number == 11:
            parts.inputs.update([_value_info(bytes_of(value))])
        elif number == 12:
            parts.outputs.append(_value_info(bytes_of(value))[0])
        elif number == 15:
            raise UnsupportedModel("it has sparse tensors")
    if len(parts.nodes) > MOST_NODES:
        raise MalformedFile(f"{len(parts.nodes):,} nodes; the limit is {MOST_NODES:,}")
    inputs = {name: kind for name, kind in parts.inputs.items() if name not in parts.initializers}
    return Graph(tuple(parts.nodes), parts.initializers, inputs, tuple(parts.outputs))


def _node(message: memoryview, depth: int) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes: dict[str, object] = {}
    for number, _, value in fields(message):
        if number in texts:
            texts[number].append(text_of(value))
        elif number == 5:
            name, attribute = _attribute(bytes_of(value), depth)
            if name in attributes:
                raise MalformedFile(f"attribute {name!r} of a node is listed twice")
            attributes[name] = attribute
    name, op_type, domain = ((texts[number] or [""])[-1] for number in (3, 4, 7))
    domain = "" if domain == "ai.onnx" else domain
    return Node(name, domain, op_type, tuple(texts[1]), tuple(texts[2]), attributes)


def _attribute(message: memoryview, depth: int) -> tuple[str, object]:
    """Its name and value. Which field holds it is told by `type`; an empty list has no field at all."""
    name, kind = "", 0
    found: dict[int, object] = {6: (), 7: (), 8: ()}
    for number, _, value in fields(message):
        if number == 1:
            name = text_of(value)
        elif number == 20:
            kind = signed(value)
        elif number == 5:
            found[4] = _tensor(bytes_of(value))
        elif number == 6:
            found[5] = _graph(bytes_of(value), depth + 1)
        elif number in _SINGLE:
            found[number - 1] = _SINGLE[number](value)
        elif number in _LISTS:
            found[number - 1] = (*cast("tuple[object, ...]", found[number - 1]), *_LISTS[number](value))
        elif number == 21:
            raise UnsupportedModel(f"attribute {name!r} refers to one of a function")
    if kind not in found:
        raise UnsupportedModel(f"attribute {name!r} is of kind {kind}, which is not evaluated")
    return name, found[kind]


def _floats(value: int | memoryview) -> list[float]:
    data = bytes_of(value)
    if len(data) % 4:
        raise MalformedFile("no ONNX protobuf: floats end inside a number")
    return list(data.cast("f"))


_SINGLE: Mapping[int, Callable[[int | memoryview], object]] = {2: float_of, 3: signed, 4: text_of}
"""Fields of an attribute that are its value. Each has a number one more than the type that says so."""
_LISTS: Mapping[int, Callable[[int | memoryview], Iterable[object]]] = {
    7: _floats,
    8: signed_run,
    9: lambda value: [text_of(value)],
}


def _value_info(message: memoryview) -> tuple[str, int]:
    """Name and element type; what its shape is, the nodes make."""
    name, kind = "", 0
    for number, _, value in fields(message):
        if number == 1:
            name = text_of(value)
        elif number == 2:
            kind = next((_element_type(bytes_of(one)) for what, _, one in fields(bytes_of(value)) if what == 1), 0)
    return name, kind


def _element_type(message: memoryview) -> int:
    """Of a `TypeProto.Tensor`."""
    return next((signed(value) for number, _, value in fields(message) if number == 1), 0)


def _tensor(message: memoryview) -> StoredTensor:
    name, data_type, location = "", 0, 0
    dims, integers, floats = list[int](), list[int](), list[float]()
    external: dict[str, str] = {}
    raw = doubles = None
    for number, _, value in fields(message):
        if number == 1:
            dims += signed_run(value)
        elif number == 2:
            data_type = signed(value)
        elif number == 4:
            floats += _floats(value)
        elif number in (5, 7, 11):  # int32_data, int64_data, uint64_data
            integers += signed_run(value)
        elif number == 8:
            name = text_of(value)
        elif number == 9:
            raw = bytes_of(value)
        elif number == 10:
            doubles = bytes_of(value)
        elif number == 13:
            key, text = _entry(bytes_of(value))
            if key in external:
                raise MalformedFile(f"tensor {name!r}: external data gives {key!r} twice")
            external[key] = text
        elif number == 14:
            location = signed(value)
    if location not in (0, EXTERNAL):
        raise MalformedFile(f"tensor {name!r}: its data lies in place {location}, which there is not")
    where = external if location == EXTERNAL else None
    return StoredTensor(name, data_type, tuple(dims), raw, tuple(integers), tuple(floats), doubles, where)


def _entry(message: memoryview) -> tuple[str, str]:
    texts = {number: text_of(value) for number, _, value in fields(message) if number in (1, 2)}
    return texts.get(1, ""), texts.get(2, "")

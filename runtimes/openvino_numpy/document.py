"""The XML of an IR of version 11: layers with their attributes and ports, and the edges between them.

Nothing that XML can refer to elsewhere is followed: a document type is refused, and with it entities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from quantkit.errors import MalformedFile

MAX_DEPTH = 64

Port = tuple[str, str]
"""A layer's id and one of its ports'."""


@dataclass(slots=True)
class Layer:
    """A node. data: its attributes. inputs, outputs: ids of its ports in order. names: what its outputs are called."""

    id: str
    name: str
    type: str
    data: Mapping[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Document:
    """layers: by id, in order. edges: port that reads to port that is read."""

    layers: dict[str, Layer] = field(default_factory=dict)
    edges: dict[Port, Port] = field(default_factory=dict)


class _Reader:
    """Collects a document while expat walks over it."""

    def __init__(self, where: str) -> None:
        self.document = Document()
        self._where = where
        self._path: list[str] = []
        self._layer: Layer | None = None

    def begin(self, tag: str, said: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > MAX_DEPTH:
            raise MalformedFile(f"{self._where}: elements are nested more than {MAX_DEPTH} deep")
        where = self._path[1:]
        if where == ["layers", "layer"]:
            self._begin_layer(said)
        elif where == ["edges", "edge"]:
            self._edge(said)
        elif self._layer is not None and where == ["layers", "layer", "data"]:
            self._layer.data = said
        elif self._layer is not None and where[2:] in (["input", "port"], ["output", "port"]):
            ports = self._layer.inputs if where[2] == "input" else self._layer.outputs
            ports.append(said.get("id", ""))
            if where[2] == "output":
                self._layer.names[said.get("id", "")] = said.get("names", "")

    def end(self, _tag: str) -> None:
        self._path.pop()

    def refuse(self, *_declared: object) -> None:
        raise MalformedFile(f"{self._where}: a graph has no document type, this one may refer to other files")

    def _begin_layer(self, said: dict[str, str]) -> None:
        self._layer = Layer(said.get("id", ""), said.get("name", ""), said.get("type", ""))
        if self._layer.id in self.document.layers:
            raise MalformedFile(f"{self._where}: two layers have the id {self._layer.id[:40]!r}")
        self.document.layers[self._layer.id] = self._layer

    def _edge(self, said: dict[str, str]) -> None:
        ends = [said.get(key, "") for key in ("to-layer", "to-port", "from-layer", "from-port")]
        self.document.edges[ends[0], ends[1]] = (ends[2], ends[3])


def read_document(text: bytes, where: str) -> Document:
    """Parse a graph; raises `MalformedFile`."""
    reader = _Reader(where)
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.begin
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise MalformedFile(f"{where} is no XML: {error}") from None
    return reader.document

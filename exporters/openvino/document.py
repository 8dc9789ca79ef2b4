"""The XML of a graph, parsed without trusting it: constants and settings, and nothing that XML can refer to elsewhere.

No document type, hence no entities, no other files and nothing that grows while it is read; a bounded size and depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from quantkit.errors import MalformedFile

MAX_DEPTH = 32
MAX_TEXT = 64 << 20
"""Bytes of XML: a graph of 100 blocks has a tenth."""


@dataclass(slots=True)
class Constant:
    """A constant of the graph, as its layer describes it, unchecked: each value is text, empty where it is missing."""

    name: str
    data: Mapping[str, str]


@dataclass(slots=True)
class _Handlers:
    where: str
    constants: list[Constant] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    name: str | None = None

    def begin(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag)
        if len(self.path) > MAX_DEPTH:
            raise MalformedFile(f"{self.where}: elements are nested more than {MAX_DEPTH} deep")
        if self.path[1:] == ["layers", "layer"]:
            self.name = attributes.get("name") if attributes.get("type") == "Const" else None
        elif self.path[1:] == ["layers", "layer", "data"] and self.name is not None:
            self.constants.append(Constant(self.name, attributes))

    def end(self, _tag: str) -> None:
        self.path.pop()

    def doctype(self, *_declared: object) -> None:
        raise MalformedFile(f"{self.where}: a graph has no document type, this one may refer to other files")


def read_constants(text: bytes, where: str) -> list[Constant]:
    """The constants of a graph in order.

    Raises:
        MalformedFile: it is no XML, or declares a document type.
    """
    handlers = _Handlers(where)
    parser = expat.ParserCreate()
    parser.StartElementHandler = handlers.begin
    parser.EndElementHandler = handlers.end
    parser.StartDoctypeDeclHandler = handlers.doctype
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise MalformedFile(f"{where} is no XML: {error}") from None
    except (ValueError, LookupError) as error:  # an encoding that there is not, or one that it is not in
        raise MalformedFile(f"{where} is no XML: {error}") from None
    return handlers.constants

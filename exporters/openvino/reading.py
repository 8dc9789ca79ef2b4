"""Reading such a folder back to codes and scales: the inverse of the exporter.

What an engine computes is in the graph, and a graph can compute anything. So the constants' names, types and shapes
tell how each weight is stored; from that and config.json follow every byte of the graph and of its small constants
(`layout.py`), and a folder that has other bytes is refused. Graphs of other tools are therefore not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from quantkit.errors import (
    IncompleteCheckpoint,
    IncompleteFile,
    InconsistentCheckpoint,
    MalformedFile,
    QuantkitError,
    UnsupportedModel,
)
from quantkit.exporters._hf_folder import read_checkpoint
from quantkit.exporters.openvino.document import MAX_TEXT, Constant, read_constants
from quantkit.exporters.openvino.layout import Layout, lay_out
from quantkit.exporters.openvino.weights import (
    BITS,
    SCALE,
    SCALES,
    ZERO,
    Stored,
    places,
    tensor_bytes,
    tensor_of,
)
from quantkit.files.member import open_member
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import Folder, read_folder_config
from quantkit.models.layouts.small_files import (
    CONFIG_NAME,
    check_links,
    file_names,
    file_notes,
    travelling_files,
)
from quantkit.models.layouts.small_files import config_notes as code_notes
from quantkit.models.recognition import parse_config
from quantkit.models.spec import TensorSlot
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight

XML_NAME, BIN_NAME = "openvino_model.xml", "openvino_model.bin"
TERNARY = 1
"""The zero point of ternary codes."""
DIGITS = 19
"""Of a number in the graph, fewer than this."""
OTHER_TOOLS = "only graphs that quantkit wrote are read back; export the model anew"


def read_folder(path: Path) -> Checkpoint:
    """Open the folder `path`; codes are read through the views.

    Raises:
        MalformedFile: the graph is no XML, or speaks of bytes that the .bin does not have.
        IncompleteFile: the .bin is shorter than the graph says. IncompleteCheckpoint: a file or a weight is missing.
        UnsupportedModel: the graph is not the one that quantkit writes for such a model.
        InconsistentCheckpoint: config.json is of another model than the graph.
    """
    config = read_folder_config(path)
    names = file_names(path)
    check_links(path, names)
    spec = parse_config(config, where=str(path / CONFIG_NAME))
    xml, data = open_member(path, XML_NAME), open_member(path, BIN_NAME)
    text = xml.read_all(MAX_TEXT)
    constants = _by_name(read_constants(text, str(xml.path)), data)
    stored = {slot.name: _stored(slot, constants, data) for slot in spec.slots()}
    layout = lay_out(spec, stored)
    _check_graph(text, layout, xml, data)
    beside = [name for name in names if not name.startswith("openvino_")]
    folder = Folder(
        path=path,
        config=config,
        tensors={},
        files=travelling_files(path, names),
        inputs=(path / XML_NAME, path / BIN_NAME),
        renamed=False,
        notes=(*code_notes(config), *file_notes(config, beside, ())),
    )
    weights = {name: _view(weight, layout.places[name], data) for name, weight in stored.items()}
    return read_checkpoint(folder, spec, weights, container="openvino")


def _by_name(constants: list[Constant], data: SourceFile) -> dict[str, Constant]:
    """Each constant by its name, after a check that its bytes are there."""
    known = {}
    for constant in constants:
        if constant.name in known:
            raise MalformedFile(f"{data.path.with_name(XML_NAME)}: two constants are called {constant.name[:80]!r}")
        offset, size = (_number(constant, key, data) for key in ("offset", "size"))
        if offset + size > data.size:
            raise IncompleteFile(
                f"{data.path} has {data.size:,} bytes, constant {constant.name[:80]!r} ends at {offset + size:,}",
                hint="copy the whole file",
            )
        known[constant.name] = constant
    return known


def _number(constant: Constant, key: str, data: SourceFile) -> int:
    text = constant.data.get(key, "")
    if not (text.isascii() and text.isdecimal() and len(text) < DIGITS):
        where = data.path.with_name(XML_NAME)
        raise MalformedFile(f"{where}: constant {constant.name[:80]!r} has the {key} {text[:40]!r}")
    return int(text)


def _stored(slot: TensorSlot, constants: Mapping[str, Constant], data: SourceFile) -> Stored:
    """How the weight of `slot` is stored, as far as its constants tell; the graph is compared later."""
    where = data.path.with_name(XML_NAME)
    constant = constants.get(slot.name)
    if constant is None:
        raise IncompleteCheckpoint(f"{where}: there is no constant {slot.name!r}", hint=OTHER_TOOLS)
    element, shape = constant.data.get("element_type", ""), _shape(constant, where)
    stored = Stored(slot.name, slot.shape, element)
    if element in BITS and len(slot.shape) == 2:
        stored = Stored(slot.name, slot.shape, element, _scheme(slot, element, shape, constants, data))
    elif element not in FLOATS:
        raise UnsupportedModel(f"{where}: {slot.name} is of the type {element[:40]!r}", hint=OTHER_TOOLS)
    part = stored.parts[0]
    if (part.shape, part.nbytes) != (shape, _number(constant, "size", data)):
        raise InconsistentCheckpoint(
            f"{where}: {slot.name} is {list(shape)} {element}, config.json makes it {list(slot.shape)}",
            hint="config.json and the graph are of different models",
        )
    return stored


def _shape(constant: Constant, where: Path) -> tuple[int, ...]:
    lengths = [text.strip() for text in constant.data.get("shape", "").split(",")]
    if not all(text.isascii() and text.isdecimal() and len(text) < DIGITS for text in lengths):
        raise MalformedFile(f"{where}: constant {constant.name[:80]!r} has no shape that is known")
    return tuple(map(int, lengths))


def _scheme(
    slot: TensorSlot, element: str, shape: tuple[int, ...], constants: Mapping[str, Constant], data: SourceFile
) -> AffineGroups:
    where = data.path.with_name(XML_NAME)
    names = {name: dtype for dtype, name in SCALES.items()}
    scale, zero = constants.get(slot.name + SCALE), constants.get(slot.name + ZERO)
    scale_dtype = names.get(scale.data.get("element_type", "")) if scale is not None else None
    if scale_dtype is None or len(shape) not in (2, 3) or shape[-1] == 0 or slot.shape[1] % shape[-1]:
        raise UnsupportedModel(f"{where}: {slot.name} has no scales that are understood", hint=OTHER_TOOLS)
    scheme = AffineGroups(
        bits=BITS[element],
        group_size=shape[-1] if len(shape) == 3 else PER_ROW,
        symmetric=zero is None or zero.data.get("shape") == "",
        scale_dtype=scale_dtype,
    )
    if zero is None or not scheme.symmetric:
        return scheme
    number = int(data.read(_number(zero, "offset", data), 1)[0])
    if element != "u2" or number not in (TERNARY, scheme.midpoint):
        raise UnsupportedModel(f"{where}: {slot.name} has the zero point {number}", hint=OTHER_TOOLS)
    return replace(scheme, ternary=number == TERNARY)


def _check_graph(text: bytes, layout: Layout, xml: SourceFile, data: SourceFile) -> None:
    """Refuse a graph, or small constants, other than `layout`'s."""
    if text != layout.xml:
        raise UnsupportedModel(
            f"{xml.path} is not the graph that quantkit writes for such a config and such weights: "
            f"line {_first_difference(text, layout.xml)} differs",
            hint=OTHER_TOOLS,
        )
    if data.size != layout.size:
        raise MalformedFile(f"{data.path} has {data.size:,} bytes, its graph makes that {layout.size:,}")
    if data.read(layout.start, len(layout.constants)).tobytes() != layout.constants:
        raise UnsupportedModel(f"{data.path}: the constants of the graph are not those of config.json")


def _first_difference(found: bytes, wanted: bytes) -> int:
    """The number of the first line that differs."""
    pairs = enumerate(zip_longest(found.splitlines(), wanted.splitlines()), 1)
    return next((number for number, (one, other) in pairs if one != other), 1)


def _view(stored: Stored, offset: int, data: SourceFile) -> Weight:
    if stored.scheme is None:
        return _dense_view(stored, offset, data)

    def read() -> QuantizedTensor:
        found = {
            part.suffix: data.read(place, part.nbytes)
            for part, place in zip(stored.parts, places(stored, offset), strict=True)
        }
        try:
            return tensor_of(stored, found)
        except QuantkitError as error:
            raise type(error)(f"{data.path}: {stored.name}: {error}", hint=error.hint) from None

    rows, cols = stored.shape
    return QuantizedView(stored.name, (rows, cols), stored.scheme, read)


def _dense_view(stored: Stored, offset: int, data: SourceFile) -> TensorView:
    dtype, shape = FLOATS[stored.element], stored.shape
    row = tensor_bytes(stored.element, shape[1:])

    def fetch(start: int, stop: int) -> np.ndarray:
        raw = data.read(offset + start * row, (stop - start) * row)
        return raw.view(dtype).reshape(stop - start, *shape[1:])

    return TensorView(stored.name, dtype, shape, fetch)

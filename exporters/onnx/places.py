"""The data file beside the graph: every tensor in it, at which byte, and what makes its bytes.

    embedding, block 0 ..., final norm, head; then the tables of rotation

Tensors begin at multiples of 64 bytes, those of a mebibyte and more at multiples of 4096, so that they can be mapped.
A tied head reads the embedding's bytes, but in standard operators, which need quantized weights transposed: there its
codes lie a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.onnx.elements import FLOAT, Element
from quantkit.exporters.onnx.layouts import Blocks, Columns, Dense, Layout, Quantized, Rows
from quantkit.exporters.onnx.rotation import tables
from quantkit.exporters.onnx.schemes import block_of
from quantkit.exporters.onnx.settings import Settings, factor_lists
from quantkit.files.planned_files import Buffer, PlannedFile, Unit
from quantkit.models.spec import BLOCKS, EMBEDDING, HEAD, NORM_ROLES, ModelSpec
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import Weight

DATA_NAME = "model.onnx.data"
ALIGNMENT, PAGE, MAPPED = 64, 4096, 1 << 20
ROTATION = "rotation"
"""The name of the last unit, and what the names of its tensors begin with."""

Grids = Mapping[str, AffineGroups]
"""The schemes of the weights that are quantized, by name."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies: `size` bytes from `offset` on."""

    element: Element
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """A weight in the data file.

    name: of the weight; "lm_head.weight" of a second copy of a tied embedding. source: of the weight that it is made
    of. start, stop: its bytes, with what is left free before each tensor. extents: its tensors, by what is appended to
    the name.
    """

    name: str
    source: str
    layout: Layout
    start: int
    stop: int
    extents: Mapping[str, Extent]


@dataclass(frozen=True, slots=True)
class Places:
    """The data file. weights: by name, in order. rotation: its tables, by their names. size: of the whole file."""

    weights: Mapping[str, Place]
    rotation: Mapping[str, Extent]
    size: int


def places(spec: ModelSpec, grids: Grids, settings: Settings) -> Places:
    """Plan the data file of a model of `spec` whose weights named in `grids` are quantized."""
    position = 0
    weights: dict[str, Place] = {}
    for name, source, layout in _layouts(spec, grids, settings):
        start, extents = position, {}
        for part, (element, shape) in layout.parts.items():
            extents[part] = _extent(element, shape, position)
            position = extents[part].offset + extents[part].size
        weights[name] = Place(name, source, layout, start, position, extents)
    rotation: dict[str, Extent] = {}
    for prefix in factor_lists(spec, settings.context):
        for kind in ("cos", "sin"):
            extent = _extent(settings.element, (settings.context, spec.head_dim // 2), position)
            rotation[f"{ROTATION}.{prefix}{kind}"] = extent
            position = extent.offset + extent.size
    return Places(weights, rotation, position)


def _extent(element: Element, shape: tuple[int, ...], position: int) -> Extent:
    size = element.nbytes(shape)
    return Extent(element, shape, position + -position % (PAGE if size >= MAPPED else ALIGNMENT), size)


def _layouts(spec: ModelSpec, grids: Grids, settings: Settings) -> Iterator[tuple[str, str, Layout]]:
    for slot in spec.slots():
        if slot.name not in grids:
            yield slot.name, slot.name, Dense(slot.shape, FLOAT if slot.role in NORM_ROLES else settings.element)
        else:
            kind = Blocks if settings.contrib else Rows if slot.name == EMBEDDING else Columns
            yield slot.name, slot.name, _quantized(kind, slot.name, slot.shape, grids, settings)
    if spec.tie_word_embeddings and EMBEDDING in grids and not settings.contrib:
        yield HEAD, EMBEDDING, _quantized(Columns, EMBEDDING, (spec.vocab_size, spec.hidden_size), grids, settings)


def _quantized(kind: type[Quantized], name: str, shape: tuple[int, ...], grids: Grids, settings: Settings) -> Quantized:
    rows, cols = shape
    return kind((rows, cols), grids[name], block_of(name, grids[name], cols), settings.element)


def data_file(plan: Places, weights: Mapping[str, Weight], spec: ModelSpec, settings: Settings) -> PlannedFile:
    """The data file of a model with `weights`: a unit for each block of it, and for each weight outside them."""
    members: dict[str, list[Place]] = {}
    for place in plan.weights.values():
        block = place.name.removeprefix(BLOCKS).partition(".")[0]
        members.setdefault(f"{BLOCKS}{block}" if place.name.startswith(BLOCKS) else place.name, []).append(place)
    units = [_unit(name, group, weights) for name, group in members.items()]
    return PlannedFile(DATA_NAME, (*units, _rotation_unit(plan, spec, settings)))


def _unit(name: str, group: list[Place], weights: Mapping[str, Weight]) -> Unit:
    def produce() -> Iterator[Buffer]:
        for place in group:
            yield from _placed(place, weights[place.source])

    return Unit(name, group[-1].stop - group[0].start, produce)


def _placed(place: Place, weight: Weight) -> Iterator[Buffer]:
    """The bytes of a weight's tensors, each after what is left free before it."""
    position, extents = place.start, iter(place.extents.values())
    end = position
    for buffer in place.layout.buffers(weight):
        if position == end:
            extent = next(extents)
            yield bytes(extent.offset - position)
            position, end = extent.offset, extent.offset + extent.size
        data = np.ascontiguousarray(buffer)
        yield data
        position += data.nbytes


def _rotation_unit(plan: Places, spec: ModelSpec, settings: Settings) -> Unit:
    extents = plan.rotation
    start = max(place.stop for place in plan.weights.values())

    def produce() -> Iterator[Buffer]:
        position = start
        for prefix, length in factor_lists(spec, settings.context).items():
            for kind, table in tables(spec, settings.element, settings.context, length).items():
                extent = extents[f"{ROTATION}.{prefix}{kind}"]
                yield bytes(extent.offset - position)
                yield table
                position = extent.offset + extent.size

    return Unit(ROTATION, plan.size - start, produce)

"""Writing an importance matrix, as llama-imatrix does: keys, order and padding; `reading.py` has the layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from quantkit.calibration.importance.measured import Importance
from quantkit.exporters.gguf.blocks import F32
from quantkit.exporters.gguf.container.header import entry, header_bytes, string_array
from quantkit.exporters.gguf.container.types import ValueType, padding
from quantkit.exporters.gguf.imatrix.reading import CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, KIND, SUMS
from quantkit.exporters.gguf.tensors import places
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, PlannedTensor, Unit
from quantkit.models.checkpoint import Checkpoint


def planned_importance(checkpoint: Checkpoint, importance: Importance) -> PlannedArtifact:
    """Plan the file: a header, then sums and count of every matrix, by name; they are measured when they are written.

    The names of all matrices of `importance` are those of `checkpoint`'s weights.
    """
    found = {place.name: place.slot for place in places(checkpoint.spec) if place.slot.name in importance.weights}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(found):
        shapes |= {name + SUMS: found[name].shape[-1:], name + COUNTS: (1,)}
    entries = [
        entry("general.type", ValueType.STRING, KIND),
        string_array(DATASETS, [importance.text]),
        entry(CHUNK_COUNT, ValueType.UINT32, importance.chunks),
        entry(CHUNK_SIZE, ValueType.UINT32, importance.length),
    ]
    header = header_bytes(entries, [(name, F32, shape) for name, shape in shapes.items()])
    squares = cache(importance.squares)
    units = [Unit("header", len(header), lambda: (header,))]
    for name in sorted(found):
        units.append(_sums(name + SUMS, found[name].name, found[name].shape[-1], squares))
        units.append(_padded(name + COUNTS, np.array([importance.tokens], "<f4")))
    return PlannedArtifact(
        format=KIND,
        folder=False,
        files=(PlannedFile("imatrix.gguf", tuple(units)),),
        tensors=tuple(PlannedTensor(name, "f32", shape, 4 * shape[0]) for name, shape in shapes.items()),
        options={"text": importance.text, "chunks": importance.chunks, "chunk_length": importance.length},
        notes=checkpoint.notes,
    )


def _sums(name: str, weight: str, cols: int, squares: Callable[[], Mapping[str, np.ndarray]]) -> Unit:
    size = 4 * cols
    return Unit(name, size + padding(size), lambda: (squares()[weight].astype("<f4", copy=False), bytes(padding(size))))


def _padded(name: str, values: np.ndarray) -> Unit:
    data = values.tobytes() + bytes(padding(values.nbytes))
    return Unit(name, len(data), lambda: (data,))

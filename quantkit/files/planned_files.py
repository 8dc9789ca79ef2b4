"""What an exporter plans: every file, every unit, every byte count, before any tensor is read.

`prepare()` of an exporter returns a `PlannedArtifact`; its size is known at once, and `artifact.publish` is the only
code that turns it into files. An exporter therefore cannot predict one size and write another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import one_line
from quantkit.tensors.views import QuantizedView

Buffer = bytes | bytearray | memoryview | np.ndarray
"""Anything with C-contiguous bytes; arrays are written in their own (little-endian) memory order."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Bytes that are computed and committed together, such as one tensor, or one block's codes, scales and zeros.

    produce() yields buffers of exactly `size` bytes in all. Units are produced once, in file order. A buffer must not
    be changed or reused after it was yielded: another thread may still be writing it.
    work: what is to be computed, beside reading and writing, in the unit of `quantkit.pipeline.run_work`.
    """

    name: str
    size: int
    produce: Callable[[], Iterable[Buffer]]
    work: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the artifact: its bare name and its units in order. Their sizes add up to the file's size."""

    name: str
    units: tuple[Unit, ...]

    @property
    def size(self) -> int:
        """Exact bytes of the finished file."""
        return sum(unit.size for unit in self.units)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor as it will lie in the artifact: name and type in the container's own words."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class PlannedArtifact:
    """Everything that `publish` needs, and everything that `plan` shows.

    format: the exporter's name. folder: False for a single-file container, whose one file takes the output's name.
    options: what influences the bytes, recorded in the manifest.
    notes: what the user should know, each made `one_line`.
    figures: what is known once every unit was produced, for the manifest. further: the same, as keys of their own.
    measure: reads the finished files, given where they lie (the folder, or the single file), and says what the manifest
    records of the numbers in them; None = nothing is.
    stored: the quantized weights that lie in the artifact on another scheme than in its source, or of which it is told
    how they lie (`QuantizedView.stored_as`), by name.
    memory: bytes that making it takes beside those of tensors that pass through.
    name_keywords: words of which the output's name must contain one, because an engine looks there; empty = any name.
    """

    format: str
    folder: bool
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: Callable[[], Mapping[str, Any]] = dict
    stored: Mapping[str, QuantizedView] = field(default_factory=dict)
    memory: int = 0
    name_keywords: tuple[str, ...] = ()
    measure: Callable[[Path], Mapping[str, Any]] | None = None
    further: Callable[[], Mapping[str, Any]] = dict

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(one_line, self.notes)))

    @property
    def size(self) -> int:
        """Exact bytes of all files, the manifest aside."""
        return sum(file.size for file in self.files)

    @property
    def work(self) -> float:
        """What all units have to compute."""
        return sum(unit.work for file in self.files for unit in file.units)


def blob(name: str, data: bytes) -> PlannedFile:
    """A small file whose bytes are known already."""
    return PlannedFile(name, (Unit(name, len(data), lambda: (data,)),))

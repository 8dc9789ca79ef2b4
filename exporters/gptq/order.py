"""Columns in activation order: `g_idx` says which group each input column belongs to.

A solver with act-order and without static groups forms groups of columns that lie anywhere. Where every run of 32, 64
or 128 neighbours still shares a group, the runs are groups of their own; otherwise no container with contiguous
groups can hold the codes, and the weight is its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantkit.errors import InconsistentCheckpoint
from quantkit.models.spec import TensorSlot
from quantkit.tensors.packing import unpack_bitstream
from quantkit.tensors.views import TensorView

RUNS = (128, 64, 32)


def group_index(view: TensorView | None, cols: int, groups: int, where: str) -> np.ndarray:
    """Group of every column, int32 (cols,); contiguous groups where the file does not say."""
    if view is None:
        contiguous: np.ndarray = (np.arange(cols) // (cols // groups)).astype(np.int32)
        return contiguous
    index = view.read()
    if index.min() < 0 or index.max() >= groups:
        raise InconsistentCheckpoint(
            f"{where}: {view.name} has values from {index.min()} to {index.max()}, there are {groups} groups"
        )
    return index


def finer_group(index: np.ndarray, width: int) -> int | None:
    """The widest run, at most `width`, such that all columns of a run share their group; None when there is none."""
    for run in (width, *(run for run in RUNS if run < width and width % run == 0)):
        runs = index.reshape(-1, run)
        if (runs == runs[:, :1]).all():
            return run
    return None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a module holds: the words of qweight as they lie, zero points and float32 scales as (rows, groups)."""

    words: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray


class LatestRead:
    """The module that was read last, kept in memory.

    Words of qweight hold several columns of all rows, so any run of rows needs the whole of it, and writers ask for one
    run after another, one weight after another. What is kept is never more than one module.
    """

    def __init__(self) -> None:
        self._held: tuple[str, Stored] | None = None

    def of(self, name: str, read: Callable[[], Stored]) -> Stored:
        """The module of the weight `name`, by `read` unless it is the one that was asked for before."""
        held = self._held
        if held is None or held[0] != name:
            self._held = None  # not two of them in memory
            held = self._held = (name, read())
        return held[1]


def dense_in_order(
    slot: TensorSlot, index: np.ndarray, bits: int, read: Callable[[], Stored], latest: LatestRead
) -> TensorView:
    """The float32 values of a weight whose groups are scattered: scale[g] * (code - zero[g]), g = index[column]."""

    def fetch(start: int, stop: int) -> np.ndarray:
        stored = latest.of(slot.name, read)
        words = np.ascontiguousarray(stored.words[:, start:stop].T)
        values = unpack_bitstream(words, bits, len(index)).astype(np.float32)
        values -= stored.zeros[start:stop, index]
        values *= stored.scales[start:stop, index]
        return values

    return TensorView(slot.name, np.dtype(np.float32), slot.shape, fetch)

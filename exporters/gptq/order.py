"""Columns in activation order: `g_idx` says which group each input column belongs to.

A solver with act-order and without static groups forms groups of columns that lie anywhere. Where every run of 32, 64
or 128 neighbours still shares a group, the runs are groups of their own; otherwise no container with contiguous
groups can hold the codes, and the weight is its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def dense_in_order(
    slot: TensorSlot,
    parts: Mapping[str, TensorView],
    index: np.ndarray,
    zeros: Callable[[TensorView], np.ndarray],
    bits: int,
) -> TensorView:
    """The float32 values of a weight whose groups are scattered: scale[g] * (code - zero[g]), g = index[column]."""
    cols = len(index)

    def fetch(start: int, stop: int) -> np.ndarray:
        words = np.ascontiguousarray(parts["qweight"].read()[:, start:stop].T)
        values = unpack_bitstream(words, bits, cols).astype(np.float32)
        values -= zeros(parts["qzeros"]).T[start:stop, index]
        values *= parts["scales"].read().astype(np.float32).T[start:stop, index]
        return values

    return TensorView(slot.name, np.dtype(np.float32), slot.shape, fetch)

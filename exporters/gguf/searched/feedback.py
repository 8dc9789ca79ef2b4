"""Codes one column after the other: what a column loses, those behind it make up for.

Frantar et al., "GPTQ" (2022), algorithm 1, on scales that stand beforehand; by expected inputs instead of seen ones.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.gguf.searched.grids import Grid
from quantkit.exporters.gguf.searched.sums import inverse

BATCH = 32
"""Columns after which all others of the window are moved."""


def levels_of(
    grid: Grid,
    values: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray | None,
    factors: tuple[np.ndarray, ...] | None,
) -> np.ndarray:
    """The level of every weight.

    Args:
        values: float32 (rows, cols).
        scale, offset: of every run of columns, float32 (rows, runs).
        factors: see `Guide`; None where every weight gets the nearest level.

    Returns:
        float32 (rows, cols).
    """
    columns = np.ascontiguousarray(values.T)
    scales = np.ascontiguousarray(scale.T)
    offsets = None if offset is None else np.ascontiguousarray(offset.T)
    inverses = inverse(scales)
    levels = np.empty_like(columns)

    def chosen(column: int) -> np.ndarray:
        """Levels of a column into `levels`; returns by how much their values are below the weights."""
        run = column // grid.run
        x = columns[column] if offsets is None else columns[column] - offsets[run]
        level = grid.nearest(x * inverses[run])
        levels[column] = level
        missing: np.ndarray = x - level * scales[run]
        return missing

    start = 0
    for factor in factors or (np.eye(1, dtype=np.float32),) * len(columns):
        width = len(factor)
        for first in range(0, width, BATCH):
            last = min(first + BATCH, width)
            lost = np.empty((last - first, columns.shape[1]), np.float32)
            for place in range(first, last):
                lost[place - first] = chosen(start + place)
                for behind in range(place + 1, last):
                    columns[start + behind] -= factor[place, behind] * lost[place - first]
            if last < width:
                columns[start + last : start + width] -= factor[first:last, last:].T @ lost
        start += width
    return np.ascontiguousarray(levels.T)

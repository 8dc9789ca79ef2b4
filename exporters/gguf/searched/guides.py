"""What an error of a column costs, and how the columns behind it make up for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.exporters.gguf.searched.inputs import Windows

TRUST = 0.8
"""What moments between columns count for: they are an estimate."""
DAMPING = 0.01
"""Added to every column's energy, of the mean of all."""


@dataclass(frozen=True, slots=True)
class Guide:
    """energy: of every column, mean 1, float32 [cols]. factors: of windows of neighbouring columns, float32 [k, k].

    A factor is the upper triangle U with UᵀU the inverse of the window's moments, its rows divided by their diagonal:
    row j tells by how much the columns behind j move for an error of 1 in it. None where nothing is known.
    """

    energy: np.ndarray
    factors: tuple[np.ndarray, ...] | None = None


def guide(windows: Windows | None, cols: int) -> Guide:
    """The guide by moments of the inputs; of none, or where float32 did not hold them, all columns are alike."""
    alike = Guide(np.ones(cols, np.float32))
    if windows is None:
        return alike
    diagonals = np.concatenate([np.diag(window) for window in windows]).astype(np.float64)
    mean = diagonals.mean()
    if not (all(np.isfinite(window).all() for window in windows) and mean > 0):
        return alike
    energy = np.maximum(diagonals / mean, 0)
    factors = [_factor(window.astype(np.float64) / mean) for window in windows]
    return Guide((energy + 1e-4).astype(np.float32), tuple(factors))


def _factor(moments: np.ndarray) -> np.ndarray:
    damped = TRUST * moments
    places = np.arange(len(moments))
    damped[places, places] = np.maximum(np.diag(moments), 0) + DAMPING
    try:
        upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    except np.linalg.LinAlgError:
        return np.eye(len(moments), dtype=np.float32)
    return np.ascontiguousarray(upper / np.diag(upper)[:, None], np.float32)

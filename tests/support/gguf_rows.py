"""Rows of every kind that a quantizer meets, and importances of their columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def rows_of_every_kind(rows: int, cols: int, seed: int = 0) -> Mapping[str, np.ndarray]:
    """float32 (rows, cols) by kind; cols is a multiple of 16."""
    rng = np.random.default_rng(seed)
    shape = (rows, cols)
    normal = rng.standard_normal(shape)

    def magnitudes(low: float, high: float) -> np.ndarray:
        return 10.0 ** rng.uniform(low, high, (rows, 1))

    powers = 2.0 ** rng.integers(-30, 12, (rows, cols // 16))
    kinds = {
        "normal": normal * 0.02,
        "heavy-tailed": rng.standard_t(1.5, shape) * 0.01,
        "of many magnitudes": normal * magnitudes(-7, 3),
        "constant": np.broadcast_to(rng.standard_normal((rows, 1)), shape),
        "zeros": np.zeros(shape),
        "zeros of either sign": np.where(normal < 0, 0.0, -0.0),
        "denormal": normal * magnitudes(-44, -36),
        "below float16": normal * magnitudes(-36, -12),
        "positive": np.abs(normal) + 0.1,
        "negative": -np.abs(normal) - 1,
        "sparse": normal * (rng.random(shape) < 0.05),
        "sub-blocks of zeros": normal * np.repeat(rng.random((rows, cols // 16)) < 0.5, 16, axis=1),
        "ties": rng.integers(-8, 8, shape) / 8,
        "ternary": rng.integers(-1, 2, shape) * 0.037,
        "just below powers of two": np.repeat(powers, 16, axis=1) * (1 - rng.integers(0, 4, shape) * 2.0**-24),
    }
    return {name: values.astype(np.float32) for name, values in kinds.items()}


def importances(cols: int, seed: int = 0) -> Mapping[str, np.ndarray | None]:
    """float32 (cols) or None, by kind."""
    rng = np.random.default_rng(seed)
    return {
        "none": None,
        "skewed": (rng.random(cols) ** 4 + 1e-3).astype(np.float32),
        "sparse": (rng.random(cols) * (rng.random(cols) < 0.2)).astype(np.float32),
        "zero": np.zeros(cols, np.float32),
    }

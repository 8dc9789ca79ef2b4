"""Float32 sums over sub-blocks [run, B], and over super-blocks of neighbouring sub-blocks."""

from __future__ import annotations

import numpy as np


def error(x: np.ndarray, w: np.ndarray, levels: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """Σ w (scale * level + offset - x)² of every sub-block: [B]."""
    off = levels * scale
    if offset is not None:
        off += offset
    off -= x
    np.square(off, out=off)
    off *= w
    total: np.ndarray = np.add.reduce(off, axis=0)
    return total


def total(terms: np.ndarray) -> np.ndarray:
    """The sum of every sub-block: [B]."""
    found: np.ndarray = np.add.reduce(terms, axis=0)
    return found


def quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 of what is divided by 0."""
    found: np.ndarray = np.zeros_like(above)
    np.divide(above, below, out=found, where=below != 0)
    return found


def inverse(values: np.ndarray) -> np.ndarray:
    """1 / value, and 0 of 0."""
    return quotient(np.ones_like(values), values)


def by_super_block(values: np.ndarray, count: int) -> np.ndarray:
    """Sums over `count` neighbours, each repeated for them: [B]."""
    return np.repeat(np.add.reduce(values.reshape(-1, count), axis=1), count)


def stored(values: np.ndarray) -> np.ndarray:
    """As a float16 gives them back, float32; infinite beyond its range."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def improved(where: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """Copy the second of every pair over the first where `where` says so."""
    for target, value in pairs:
        np.copyto(target, value, where=where)

"""Float32 as C has it: rounding by the bits of a sum, conversions out of range, sums in order."""

from __future__ import annotations

import numpy as np

MAGIC = np.float32(12582912)
"""1.5 * 2 ** 23: a float added to it has its nearest integer in the low bits, ties to even."""
SAFE = np.float32(4194303)
"""Largest magnitude of which those bits hold the integer; `np.rint` gives the same below it."""
LEAST = np.float32(1e-15)
"""A group whose largest magnitude is below it counts as zeros."""


def nearest_int(values: np.ndarray) -> np.ndarray:
    """ggml's `nearest_int`: int32, the nearest one below `SAFE`, and whatever the bits say beyond it and of NaN."""
    patterns: np.ndarray = (values + MAGIC).view(np.int32)
    patterns &= 0x007FFFFF
    patterns -= 0x00400000
    return patterns


def clipped_nearest(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """`nearest_int`, not below `low` nor above `high`: uint8, or int8 where `low` is negative."""
    nearest = nearest_int(values)
    np.clip(nearest, low, high, out=nearest)
    return nearest.astype(np.int8 if low < 0 else np.uint8)


def ordered_sum(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, term by term: float32.

    numpy adds whole rows one after the other, but the terms of a single column in another order.
    """
    alone = terms[0].size == 1
    total: np.ndarray = np.add.accumulate(terms, axis=0)[-1] if alone else np.add.reduce(terms, axis=0)
    return total


def first_extremes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest along the first axis; of equals (zeros of either sign) the first."""
    low, high = x[0].copy(), x[0].copy()
    for row in x[1:]:
        np.copyto(low, row, where=row < low)
        np.copyto(high, row, where=row > high)
    return low, high


def largest_magnitude(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of largest magnitude along the first axis, the first of equals, and its magnitude.

    NaN is never the largest; of nothing but zeros the value is +0.
    """
    value, magnitude = np.zeros_like(x[0]), np.zeros_like(x[0])
    for row in x:
        size = np.abs(row)
        larger = size > magnitude
        np.copyto(value, row, where=larger)
        np.copyto(magnitude, size, where=larger)
    return value, magnitude


def inverse(values: np.ndarray) -> np.ndarray:
    """1 / value, and 0 of 0."""
    found: np.ndarray = np.zeros_like(values)
    np.divide(np.float32(1), values, out=found, where=values != 0)
    return found


def half(values: np.ndarray) -> np.ndarray:
    """The nearest float16; infinity beyond its range."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def sub_blocks(x: np.ndarray, run: int) -> np.ndarray:
    """Values (n, size) as (run, n * size / run): the weights of a sub-block down, sub-blocks across."""
    return np.ascontiguousarray(x.reshape(-1, run).T)


def across(values: np.ndarray, n: int) -> np.ndarray:
    """One value of every sub-block (n * k) as (k, n): those of a block down, blocks across."""
    return np.ascontiguousarray(values.reshape(n, -1).T)


def along(columns: np.ndarray, n: int) -> np.ndarray:
    """Inverse of `sub_blocks` and `across`: (run, n * k) to (n, run * k)."""
    return np.ascontiguousarray(columns.T).reshape(n, -1)

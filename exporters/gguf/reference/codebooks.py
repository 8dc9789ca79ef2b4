"""ggml's quantizers of types whose codes stand in a table: float32 (n, elements) to parts of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.arithmetic import (
    LEAST,
    across,
    along,
    clipped_nearest,
    half,
    inverse,
    largest_magnitude,
    ordered_sum,
    sub_blocks,
)
from quantkit.exporters.gguf.reference.super_blocks import Quantizer, importance, mean_squares
from quantkit.exporters.gguf.types.codebooks import IQ4_LEVELS, IQ4_NL, IQ4_XS, MXFP4, MXFP4_LEVELS, RUN, half_powers
from quantkit.exporters.gguf.types.parts import Parts

TRIES = 7
"""Grids that put the value of largest magnitude that many steps outside of the lowest level, and inside."""


@cache
def _thresholds() -> np.ndarray:
    """float32 [15]: the least value that is nearer to a level than to the one below it, as float32 differences tell."""
    found = []
    for low, high in pairwise(IQ4_LEVELS):
        value = np.float32((low + high) / 2)
        while value - np.float32(low) < np.float32(high) - value:
            value = np.nextafter(value, np.float32(high))
        while not np.nextafter(value, np.float32(low)) - np.float32(low) < np.float32(high) - np.nextafter(
            value, np.float32(low)
        ):
            value = np.nextafter(value, np.float32(low))
        found.append(value)
    return np.array(found, np.float32)


def _nearest_code(x: np.ndarray) -> np.ndarray:
    """Codes uint8 of the levels that are nearest to `x`; of two as near, the upper. NaN has the highest."""
    codes = np.zeros(x.shape, np.uint8)
    above = np.empty(x.shape, np.bool_)
    for threshold in _thresholds():
        np.less(x, threshold, out=above)
        codes += ~above
    return codes


def _nearest_level(x: np.ndarray) -> np.ndarray:
    return np.take(np.array(IQ4_LEVELS, np.float32), _nearest_code(x))


def _scales(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The scale of every sub-block of `x` [32, B] that loses least, by `w`; 0 of zeros."""
    extreme, magnitude = largest_magnitude(x)
    lowest = np.float32(IQ4_LEVELS[0])

    def sums(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = _nearest_level(factor * x)
        wl = w * levels
        return ordered_sum(wl * x), ordered_sum(wl * levels)

    sum_lx, sum_l2 = sums(1 / (-extreme / lowest))
    scale: np.ndarray = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in range(-TRIES, TRIES + 1):
        sum_lx, sum_l2 = sums((np.float32(step) + lowest) / extreme)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        np.copyto(scale, sum_lx / sum_l2, where=better)
        np.copyto(best, scale * sum_lx, where=better)
    scale[magnitude < LEAST] = 0
    return scale


def _searched(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sub-blocks [32, B], and the scale of each."""
    x = sub_blocks(values, RUN)
    w = x * x if weights is None else importance(x, sub_blocks(weights, RUN), mean_squares(values, 2, RUN))
    return x, _scales(x, w)


def quantize_iq4_nl(values: np.ndarray, weights: np.ndarray | None) -> Parts:
    """IQ4_NL: codes are the nearest ones to the float32 scale; the file stores it as float16."""
    x, scale = _searched(values, weights)
    return Parts(codes=along(_nearest_code(inverse(scale) * x), len(values)), d=half(scale))


def quantize_iq4_xs(values: np.ndarray, weights: np.ndarray | None) -> Parts:
    """IQ4_XS: scales of six bits, multiples of -1/32 of the largest; codes are the nearest ones to their products."""
    n = len(values)
    x, found = _searched(values, weights)
    scale = across(found, n)
    extreme, _ = largest_magnitude(scale)
    d = -extreme / np.float32(32)
    integers = clipped_nearest(inverse(d) * scale, -32, 31)
    steps = (d * integers.astype(np.float32)).T.reshape(-1)
    codes = _nearest_code(inverse(steps) * x)
    scales = np.ascontiguousarray((integers + np.int8(32)).astype(np.uint8).T)
    return Parts(codes=along(codes, n), d=half(d), scales=scales)


def quantize_mxfp4(values: np.ndarray, _weights: np.ndarray | None) -> Parts:
    """MXFP4: the exponent two below that of the largest magnitude; codes are the nearest ones, the first of equals."""
    x = sub_blocks(values, RUN)
    _, magnitude = largest_magnitude(x)
    exponent = np.floor(np.log2(magnitude.astype(np.float64)).astype(np.float32)) + np.float32(125)
    d = np.where(magnitude > 0, exponent, np.float32(0)).astype(np.int32).astype(np.uint8)
    unit = half_powers(d)
    sizes = np.abs(x)
    codes, best = np.zeros(x.shape, np.uint8), sizes.copy()
    for code, level in enumerate(MXFP4_LEVELS[1:8], 1):
        off = np.abs(np.float32(level) * unit - sizes)
        nearer = off < best
        np.copyto(codes, np.uint8(code), where=nearer)
        np.copyto(best, off, where=nearer)
    codes[(x < 0) & (codes > 0)] += np.uint8(8)
    return Parts(codes=along(codes, len(values)), d=d)


QUANTIZERS: Mapping[BlockType, Quantizer] = {
    IQ4_NL: quantize_iq4_nl,
    IQ4_XS: quantize_iq4_xs,
    MXFP4: quantize_mxfp4,
}

"""The searches of `searches.py` as machine code, by numba: the same bytes, sooner. Imported only where numba is.

Sub-blocks lie across, as they do there, and LANES of them are searched together, so that a vector of the processor
holds one weight of each. Sums go through the weights in order; products and sums are not fused; nothing is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np

LANES = 256
"""Sub-blocks that are searched together."""
MAGIC, MASK, SHIFT = np.float32(12582912), np.int32(0x007FFFFF), np.int32(0x00400000)
"""Those of `arithmetic.nearest_int`."""
ZERO, ONE = np.float32(0), np.float32(1)

Function = TypeVar("Function", bound=Callable[..., object])


def _compiled(function: Function) -> Function:
    """`function` as machine code that is kept beside this file, or in the user's cache; where neither can be, not."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(Function, numba.njit(**options)(function))


@_compiled
def _taken(source: np.ndarray, start: int, target: np.ndarray) -> None:
    """Columns of [run, B] from `start` into [run, LANES]; zeros beyond the last."""
    run, count = source.shape
    if start + LANES <= count:
        for i in range(run):
            for b in range(LANES):
                target[i, b] = source[i, start + b]
        return
    for i in range(run):
        for b in range(LANES):
            target[i, b] = source[i, start + b] if start + b < count else ZERO


@_compiled
def _put(source: np.ndarray, start: int, target: np.ndarray) -> None:
    """[k, LANES] into columns of [k, B] from `start`, as far as these reach."""
    wide = min(LANES, target.shape[1] - start)
    for i in range(source.shape[0]):
        for b in range(wide):
            target[i, start + b] = source[i, b]


@_compiled
def _ranges(x: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray, sums: np.ndarray) -> None:
    """Lowest value, but none above 0, and highest; sums of w and of w * x."""
    for b in range(LANES):
        low[b] = x[0, b]
        high[b] = x[0, b]
        sums[0, b] = w[0, b]
        sums[1, b] = w[0, b] * x[0, b]
    for i in range(1, x.shape[0]):
        for b in range(LANES):
            value = x[i, b]
            low[b] = value if value < low[b] else low[b]
            high[b] = value if value > high[b] else high[b]
            sums[0, b] += w[i, b]
            sums[1, b] += w[i, b] * value
    for b in range(LANES):
        low[b] = ZERO if low[b] > ZERO else low[b]


@_compiled
def _steps(  # noqa: PLR0917 - compiled code takes no keywords
    x: np.ndarray, low: np.ndarray, inverse: np.ndarray, levels: np.float32, held_first: bool, codes: np.ndarray
) -> None:
    """The nearest of the codes 0 .. levels to (x - low) * inverse."""
    for i in range(x.shape[0]):
        for b in range(LANES):
            step = (x[i, b] - low[b]) * inverse[b]
            if held_first:
                step = step if step > ZERO else ZERO  # of NaN, too
                step = step if step < levels else levels
            nearest = np.float32((np.float32(step + MAGIC).view(np.int32) & MASK) - SHIFT)
            nearest = ZERO if nearest < ZERO else nearest
            codes[i, b] = levels if nearest > levels else nearest


@_compiled
def _fitted(x: np.ndarray, w: np.ndarray, codes: np.ndarray, sums: np.ndarray, fit: np.ndarray) -> None:
    """The scale, offset and determinant of the least squares; sums of w and w * x stand in `sums`."""
    for b in range(LANES):
        wl = w[0, b] * codes[0, b]
        sums[2, b] = wl
        sums[3, b] = wl * codes[0, b]
        sums[4, b] = wl * x[0, b]
    for i in range(1, x.shape[0]):
        for b in range(LANES):
            wl = w[i, b] * codes[i, b]
            sums[2, b] += wl
            sums[3, b] += wl * codes[i, b]
            sums[4, b] += wl * x[i, b]
    for b in range(LANES):
        sum_w, sum_x, sum_l, sum_l2, sum_xl = sums[0, b], sums[1, b], sums[2, b], sums[3, b], sums[4, b]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        fit[0, b] = sum_xl / sum_l2 if offset > ZERO else (sum_w * sum_xl - sum_x * sum_l) / determinant
        fit[1, b] = ZERO if offset > ZERO else offset
        fit[2, b] = determinant


@_compiled
def _errors(  # noqa: PLR0917 - as above
    x: np.ndarray, w: np.ndarray, codes: np.ndarray, scale: np.ndarray, low: np.ndarray, absolute: bool, out: np.ndarray
) -> None:
    """The weighed sums of deviations."""
    for i in range(x.shape[0]):
        for b in range(LANES):
            off = scale[b] * codes[i, b] + low[b] - x[i, b]
            term = (abs(off) if absolute else off * off) * w[i, b]
            out[b] = term if i == 0 else out[b] + term


@_compiled
def offset_search(  # noqa: PLR0917 - as above
    x: np.ndarray, w: np.ndarray, levels: np.float32, numerators: np.ndarray, absolute: bool, held_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What `OffsetSearch.run` finds: codes uint8 [run, B], and scale and minimum, float32 [2, B].

    numerators: float32, over the range they make the inverse scales that are tried. Empty sub-blocks have code and
    scale 0, and their minimum.
    """
    run, count = x.shape
    found, result = np.empty((run, count), np.uint8), np.empty((2, count), np.float32)
    values, weights = np.empty((run, LANES), np.float32), np.empty((run, LANES), np.float32)
    codes, best_codes = np.empty((run, LANES), np.float32), np.empty((run, LANES), np.float32)
    sums, fit, best = (
        np.empty((5, LANES), np.float32),
        np.empty((3, LANES), np.float32),
        np.empty((2, LANES), np.float32),
    )
    high, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    error, least = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(0, count, LANES):
        _taken(x, start, values)
        _taken(w, start, weights)
        _ranges(values, weights, best[1], high, sums)
        empty = high <= best[1]
        for b in range(LANES):
            inverse[b] = levels / (high[b] - best[1, b])
            best[0, b] = ONE / inverse[b]
        _steps(values, best[1], inverse, levels, False, best_codes)
        _errors(values, weights, best_codes, best[0], best[1], absolute, least)
        for numerator in numerators:
            for b in range(LANES):
                inverse[b] = numerator / (high[b] - best[1, b])
            _steps(values, best[1], inverse, levels, held_first, codes)
            _fitted(values, weights, codes, sums, fit)
            _errors(values, weights, codes, fit[0], fit[1], absolute, error)
            for b in range(LANES):
                if fit[2, b] > ZERO and error[b] < least[b] and not empty[b]:
                    least[b] = error[b]
                    best[0, b] = fit[0, b]
                    best[1, b] = fit[1, b]
                    for i in range(run):
                        best_codes[i, b] = codes[i, b]
        for b in range(LANES):
            if empty[b]:
                best[0, b] = ZERO
                for i in range(run):
                    best_codes[i, b] = ZERO
        _put(best, start, result)
        _put(best_codes, start, found)
    return found, result


@_compiled
def _held(x: np.ndarray, inverse: np.ndarray, low: np.float32, high: np.float32, levels: np.ndarray) -> None:
    """The nearest of the levels low .. high to x * inverse."""
    for i in range(x.shape[0]):
        for b in range(LANES):
            nearest = np.float32((np.float32(inverse[b] * x[i, b] + MAGIC).view(np.int32) & MASK) - SHIFT)
            nearest = low if nearest < low else nearest
            levels[i, b] = high if nearest > high else nearest


@_compiled
def _products(wx: np.ndarray, w: np.ndarray, levels: np.ndarray, sums: np.ndarray) -> None:
    """Sums of w * x * level and of w * level²."""
    for i in range(wx.shape[0]):
        for b in range(LANES):
            first, second = wx[i, b] * levels[i, b], w[i, b] * levels[i, b] * levels[i, b]
            sums[0, b] = first if i == 0 else sums[0, b] + first
            sums[1, b] = second if i == 0 else sums[1, b] + second


@_compiled
def symmetric_search(
    x: np.ndarray, w: np.ndarray, half: np.float32, extreme: np.ndarray, numerators: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `symmetric_search` of `searches.py` finds: codes uint8 [run, B], and scales float32 [1, B].

    extreme: the value of largest magnitude. numerators: float32, over it they make the inverse scales that are tried.
    Of sub-blocks of zeros neither means anything.
    """
    run, count = x.shape
    found, scales = np.empty((run, count), np.uint8), np.empty((1, count), np.float32)
    values, weights, wx = (
        np.empty((run, LANES), np.float32),
        np.empty((run, LANES), np.float32),
        np.empty((run, LANES), np.float32),
    )
    levels, chosen = np.empty((run, LANES), np.float32), np.empty((run, LANES), np.float32)
    sums, scale = np.empty((2, LANES), np.float32), np.empty((1, LANES), np.float32)
    inverse, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(0, count, LANES):
        _taken(x, start, values)
        _taken(w, start, weights)
        for i in range(run):
            for b in range(LANES):
                wx[i, b] = weights[i, b] * values[i, b]
        for number in range(len(numerators)):
            for b in range(LANES):
                inverse[b] = numerators[number] / extreme[min(start + b, count - 1)]
            _held(values, inverse, -half, half - ONE, levels)
            _products(wx, weights, levels, sums)
            for b in range(LANES):
                sum_lx, sum_l2 = sums[0, b], sums[1, b]
                if number == 0:
                    scale[0, b] = sum_lx / sum_l2 if sum_l2 != ZERO else ZERO
                    best[b] = scale[0, b] * sum_lx
                elif sum_l2 > ZERO and sum_lx * sum_lx > best[b] * sum_l2:
                    scale[0, b] = sum_lx / sum_l2
                    best[b] = scale[0, b] * sum_lx
                else:
                    continue
                for i in range(run):
                    chosen[i, b] = levels[i, b] + half
        _put(chosen, start, found)
        _put(scale, start, scales)
    return found, scales

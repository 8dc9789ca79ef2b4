"""What a search finds for every sub-block, and its start: each sub-block by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.exporters.gguf.reference.arithmetic import largest_magnitude
from quantkit.exporters.gguf.searched.grids import Grid
from quantkit.exporters.gguf.searched.sums import error, improved, inverse, quotient, stored, total

SHARES = (1.0, 0.985, 0.97, 1.015, 1.03, 0.955, 0.94)
"""Of the unit that makes the largest of several numbers the most that there is; tried."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Of sub-blocks, in the order of their weights: float32 [B].

    scale, offset: what levels are multiplied by, and what is added where the type has minimums.
    unit, count, low_unit, low_count: float16 values and their multiples that these are products of, where they are.
    """

    scale: np.ndarray
    offset: np.ndarray | None = None
    unit: np.ndarray | None = None
    count: np.ndarray | None = None
    low_unit: np.ndarray | None = None
    low_count: np.ndarray | None = None


def free_scales(grid: Grid, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The scale of each sub-block [run, B] that loses least, without minimums: float32 [B], 0 of zeros."""
    extreme, _ = largest_magnitude(x)
    base = extreme / np.float32(grid.low)
    scale: np.ndarray = np.zeros_like(base)
    gain = np.zeros_like(base)
    for share in grid.tried:
        levels = grid.nearest(x * inverse(base * np.float32(share)))
        weighted = levels * w
        products = total(weighted * x)
        weighted *= levels
        found = quotient(products, total(weighted))
        saved = found * products
        improved(saved > gain, (gain, saved), (scale, found))
    return scale


def free_lines(grid: Grid, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of each sub-block that lose least, the offset never above 0 where scales are multiples."""
    most = np.float32(grid.high)
    low = x.min(axis=0)
    if grid.multiples is not None:
        low = np.minimum(low, 0)
    reach = x.max(axis=0) - low
    reach[reach <= 0] = 1
    sum_w, sum_x = total(w), total(w * x)
    scale, offset = reach / most, low.copy()
    least = error(x, w, np.clip(np.rint((x - low) * (most / reach)), 0, most), scale, offset)
    for steps in grid.tried:
        per_step, start = np.float32(steps) / reach, low
        for _ in range(2):
            levels = np.clip(np.rint((x - start) * per_step), 0, most)
            weighted = levels * w
            sum_l, sum_xl = total(weighted), total(weighted * x)
            weighted *= levels
            sum_l2 = total(weighted)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            slope = quotient(sum_w * sum_xl - sum_x * sum_l, determinant)
            start = quotient(sum_l2 * sum_x - sum_l * sum_xl, determinant)
            if grid.multiples is not None:
                above = start > 0
                improved(above, (start, np.zeros_like(start)), (slope, quotient(sum_xl, sum_l2)))
            lost = error(x, w, levels, slope, start)
            improved((lost < least) & (slope > 0), (least, lost), (scale, slope), (offset, start))
            per_step = inverse(slope)
    return scale, offset


def multiples(
    values: np.ndarray, weights: np.ndarray, ends: tuple[int, ...], span: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Units and counts [n, k] whose products come nearest to values [n, k], by weights [n, k].

    ends: counts that the value of largest magnitude may get. span: least and most of a count.
    Returns: units [n], float32 that float16 holds, and counts, float32.
    """
    places = np.abs(values).argmax(axis=1)[:, None]
    extreme = np.take_along_axis(values, places, axis=1)[:, 0]
    units, counts = np.zeros_like(extreme), np.zeros_like(values)
    least = (weights * values * values).sum(axis=1)
    for end in ends:
        for share in SHARES:
            unit = stored(extreme * np.float32(share / end))
            found = np.clip(np.rint(values * inverse(unit)[:, None]), *span)
            weighted = weights * found
            unit = stored(quotient((weighted * values).sum(axis=1), (weighted * found).sum(axis=1)))
            found = np.clip(np.rint(values * inverse(unit)[:, None]), *span)
            lost = (weights * (values - unit[:, None] * found) ** 2).sum(axis=1)
            better = lost < least
            improved(better, (least, lost), (units, unit))
            improved(better[:, None], (counts, found))
    units[~np.isfinite(stored(extreme / np.float32(max(map(abs, ends)))))] = np.inf  # refused when it is packed
    return units, counts

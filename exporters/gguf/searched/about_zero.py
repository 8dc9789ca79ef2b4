"""Scales of levels that lie about zero: Q3_K, Q6_K and IQ4_XS; Q4_0, Q5_0, Q8_0, IQ4_NL and MXFP4."""

from __future__ import annotations

import numpy as np

from quantkit.exporters.gguf.reference.arithmetic import largest_magnitude
from quantkit.exporters.gguf.searched.grids import Grid
from quantkit.exporters.gguf.searched.scales import Scales, free_scales, multiples
from quantkit.exporters.gguf.searched.sums import by_super_block, error, improved, inverse, quotient, stored, total

ROUNDS = 2
"""How often counts are changed by one where that helps, and the unit is fitted to them."""
POWERS = (-126, 126)
"""Exponents of MXFP4's scales that are used."""


def scales_about_zero(grid: Grid, x: np.ndarray, w: np.ndarray, per_block: int) -> Scales:
    """The scales of sub-blocks [run, B], of which `per_block` share a unit where the type has units."""
    if grid.table == "fp4":
        return Scales(_powers(grid, x, w))
    scale = free_scales(grid, x, w)
    if grid.multiples is None:
        return Scales(stored(scale))
    levels = grid.nearest(x * inverse(scale))
    curvature = total(w * levels * levels)
    unit, count = (
        part.reshape(-1)
        for part in _wide(
            *multiples(scale.reshape(-1, per_block), curvature.reshape(-1, per_block), grid.multiples, grid.multiples)
        )
    )
    return _descended(grid, x, w, per_block, Scales(unit * count, unit=unit, count=count))


def _wide(units: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(units, counts.shape[1]), counts


def _descended(grid: Grid, x: np.ndarray, w: np.ndarray, per_block: int, start: Scales) -> Scales:
    assert start.unit is not None
    assert start.count is not None
    assert grid.multiples is not None
    unit, count = start.unit.copy(), start.count.copy()

    def lost(unit: np.ndarray, count: np.ndarray) -> np.ndarray:
        scale = unit * count
        return error(x, w, grid.nearest(x * inverse(scale)), scale, None)

    least = lost(unit, count)
    for _ in range(ROUNDS):
        for step in (-1, 1):
            tried = np.clip(count + np.float32(step), *grid.multiples)
            found = lost(unit, tried)
            improved(found < least, (least, found), (count, tried))
        levels = grid.nearest(x * inverse(unit * count))
        weighted = levels * w
        products, energy = total(weighted * x) * count, total(weighted * levels) * count * count
        fitted = stored(quotient(by_super_block(products, per_block), by_super_block(energy, per_block)))
        found = lost(fitted, count)
        better = by_super_block(found, per_block) < by_super_block(least, per_block)
        improved(better, (least, found), (unit, fitted))
    return Scales(unit * count, unit=unit, count=count)


def _powers(grid: Grid, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The powers of two near ggml's that lose least; 0 of zeros."""
    _, magnitude = largest_magnitude(x)
    exponent = np.frexp(magnitude)[1].astype(np.float32) - np.float32(4)  # the largest level is 12, below 2 ** 4
    scale, least = np.zeros_like(magnitude), np.full_like(magnitude, np.inf)
    for factor in grid.tried:
        tried = np.exp2(np.clip(exponent + np.float32(np.log2(factor)), *POWERS))
        tried[magnitude == 0] = 0
        lost = error(x, w, grid.nearest(x * inverse(tried)), tried, None)
        improved(lost < least, (least, lost), (scale, tried))
    return scale

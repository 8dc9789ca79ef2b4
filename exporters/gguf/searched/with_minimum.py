"""Scales and minimums of levels that rise from a minimum: Q2_K, Q4_K and Q5_K; Q4_1 and Q5_1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.exporters.gguf.searched.grids import Grid
from quantkit.exporters.gguf.searched.scales import Scales, free_lines, multiples
from quantkit.exporters.gguf.searched.sums import by_super_block, error, improved, inverse, quotient, stored, total

ROUNDS = 2
"""How often counts are changed by one where that helps, and both units are fitted to them."""


def scales_with_minimum(grid: Grid, x: np.ndarray, w: np.ndarray, per_block: int) -> Scales:
    """The scales and offsets of sub-blocks [run, B], of which `per_block` share units where the type has units."""
    scale, offset = free_lines(grid, x, w)
    if grid.multiples is None:
        return Scales(stored(scale), stored(offset))
    most = grid.multiples[1]
    weights = total(w).reshape(-1, per_block)
    parts = [multiples(part.reshape(-1, per_block), weights, (most,), grid.multiples) for part in (scale, -offset)]
    (unit, count), (low_unit, low_count) = (
        (np.repeat(units, per_block), counts.reshape(-1)) for units, counts in parts
    )
    search = _Descent(grid, x, w, per_block, unit, count, low_unit, low_count)
    return search.run()


@dataclass(slots=True)
class _Descent:
    """Units and counts of sub-blocks, and steps that make them better; see `Scales`."""

    grid: Grid
    x: np.ndarray
    w: np.ndarray
    per_block: int
    unit: np.ndarray
    count: np.ndarray
    low_unit: np.ndarray
    low_count: np.ndarray

    def run(self) -> Scales:
        least = self._lost(self.unit, self.count, self.low_unit, self.low_count)
        for _ in range(ROUNDS):
            for step in (0, -1, 1):
                self._try_counts(least, step)
            self._fit_units(least)
        return Scales(
            self.unit * self.count,
            -(self.low_unit * self.low_count),
            unit=self.unit,
            count=self.count,
            low_unit=self.low_unit,
            low_count=self.low_count,
        )

    def _levels(self, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        return self.grid.nearest((self.x - offset) * inverse(scale))

    def _lost(self, unit: np.ndarray, count: np.ndarray, low_unit: np.ndarray, low_count: np.ndarray) -> np.ndarray:
        scale, offset = unit * count, -(low_unit * low_count)
        return error(self.x, self.w, self._levels(scale, offset), scale, offset)

    def _try_counts(self, least: np.ndarray, step: int) -> None:
        """Scales `step` counts away, with the minimum that suits them best; and minimums one count away."""
        assert self.grid.multiples is not None
        tried = np.clip(self.count + np.float32(step), *self.grid.multiples)
        scale = self.unit * tried
        levels = self._levels(scale, -(self.low_unit * self.low_count))
        wanted = quotient(total(self.w * (levels * scale - self.x)), total(self.w))
        lows = [np.rint(quotient(wanted, self.low_unit))]
        if step == 0:
            lows += [self.low_count - np.float32(1), self.low_count + np.float32(1)]
        for low in lows:
            low_count = np.clip(low, *self.grid.multiples)
            found = self._lost(self.unit, tried, self.low_unit, low_count)
            improved(found < least, (least, found), (self.count, tried), (self.low_count, low_count))

    def _fit_units(self, least: np.ndarray) -> None:
        """Both units by least squares over the super-block."""
        levels = self._levels(self.unit * self.count, -(self.low_unit * self.low_count))
        steps, falls = levels * self.count, self.low_count
        weighted = steps * self.w

        def summed(values: np.ndarray) -> np.ndarray:
            return by_super_block(values, self.per_block)

        aa, ab, ax = summed(total(weighted * steps)), summed(total(weighted) * falls), summed(total(weighted * self.x))
        bb, bx = summed(total(self.w) * falls * falls), summed(total(self.w * self.x) * falls)
        determinant = aa * bb - ab * ab
        both = determinant > np.float32(1e-6) * aa * bb
        unit = np.where(both, quotient(bb * ax - ab * bx, determinant), quotient(ax + ab * self.low_unit, aa))
        low_unit = np.where(both, quotient(ab * ax - aa * bx, determinant), self.low_unit)
        unit, low_unit = stored(np.maximum(unit, 0)), stored(np.maximum(low_unit, 0))
        found = self._lost(unit, self.count, low_unit, self.low_count)
        better = summed(found) < summed(least)
        improved(better, (least, found), (self.unit, unit), (self.low_unit, low_unit))

"""The searches that ggml's quantizers are made of, for many sub-blocks at a time.

`x` and `w` are float32 [run, B], the weights of a sub-block down; scales and minimums are float32 [B]. Where numba is
installed, the two searches that take most of the time are those of `compiled.py`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from quantkit.exporters.gguf.reference.arithmetic import (
    LEAST,
    SAFE,
    first_extremes,
    largest_magnitude,
    nearest_int,
    ordered_sum,
)

PASSES = 5
"""How often integers are changed one by one."""
TRIED = (0, *range(-9, 0), *range(1, 10))
"""Tenths of a level by which the value of largest magnitude lies further out than the lowest level."""


@cache
def compiled() -> ModuleType | None:
    """The module `compiled`, None where numba is missing or does not go with this numpy."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from quantkit.exporters.gguf.reference import compiled as module  # noqa: PLC0415 - optional, slow to import
    except ImportError:
        return None
    return module


@dataclass(frozen=True, slots=True)
class OffsetSearch:
    """`make_qkx2_quants`, and as `weighted` also `make_qkx3_quants`.

    levels: the highest code. first, step, steps: inverse scales that are tried are (levels + first + step * i) / range,
    for i from 0 to `steps`. absolute: whether errors are absolute ones rather than squared.
    """

    levels: int
    first: float
    step: float
    steps: int
    absolute: bool = False
    weighted: bool = False

    def run(self, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes uint8 [run, B], scale and what is subtracted; each fit starts from the minimum of the best so far."""
        fast = compiled()
        if fast is not None:
            given = (np.ascontiguousarray(x), np.ascontiguousarray(w), np.float32(self.levels), self._numerators)
            found, (fitted, least) = fast.offset_search(*given, self.absolute, self.weighted)
            return found, fitted, -least
        return self._run(x, w)

    @property
    def _numerators(self) -> np.ndarray:
        """Float32; over the range of a sub-block they are the inverse scales that are tried."""
        first, step, levels = (np.float32(value) for value in (self.first, self.step, self.levels))
        return np.array([first + step * np.float32(i) + levels for i in range(self.steps + 1)], np.float32)

    def _run(self, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By numpy."""
        lowest, highest = first_extremes(x)
        low = np.where(lowest > 0, np.float32(0), lowest)
        grid = _Grid(x, lowest, highest, np.float32(self.levels))
        empty = highest <= low
        sum_w, sum_x = ordered_sum(w), ordered_sum(w * x)
        scale = 1 / (np.float32(self.levels) / (highest - low))
        codes = grid.codes(low, np.float32(self.levels), held_first=False).copy()
        best = self._error(grid.off(codes, scale, low), w)
        for numerator in self._numerators:
            found = grid.codes(low, numerator, held_first=self.weighted)
            wl = w * found
            sum_l, sum_l2, sum_xl = ordered_sum(wl), ordered_sum(wl * found), ordered_sum(wl * x)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
            offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            above = offset > 0
            np.copyto(offset, np.float32(0), where=above)
            np.copyto(fitted, sum_xl / sum_l2, where=above)
            error = self._error(grid.off(found, fitted, offset), w)
            better = (determinant > 0) & (error < best) & ~empty
            if better.any():
                np.copyto(codes, found, where=better)
                for target, value in ((best, error), (scale, fitted), (low, offset)):
                    np.copyto(target, value, where=better)
        codes[:, empty] = 0
        scale[empty] = 0
        return codes.astype(np.uint8), scale, -low

    def _error(self, off: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The weighed sum of deviations, which are overwritten."""
        if self.absolute:
            np.abs(off, out=off)
        else:
            np.square(off, out=off)
        off *= w
        return ordered_sum(off)


class _Grid:
    """Sub-blocks [run, B] with their extremes, and what is computed of them again and again, in the same arrays."""

    def __init__(self, x: np.ndarray, lowest: np.ndarray, highest: np.ndarray, levels: np.float32) -> None:
        self._x, self._lowest, self._highest, self._levels = x, lowest, highest, levels
        self._codes, self._off = np.empty_like(x), np.empty_like(x)

    def codes(self, low: np.ndarray, numerator: np.float32, *, held_first: bool) -> np.ndarray:
        """The nearest of `numerator` / range steps from `low`, as float32; valid until the next call.

        held_first: whether quotients are held to the levels before they are rounded to integers; it only counts for
        those that are too large, or no numbers.
        """
        inverse = numerator / (self._highest - low)
        steps = self._codes
        np.multiply(np.subtract(self._x, low, out=steps), inverse, out=steps)
        reach = np.abs(inverse) * np.maximum(np.abs(self._lowest - low), np.abs(self._highest - low))
        if (reach < SAFE).all():
            np.rint(steps, out=steps)
        elif held_first:
            np.rint(np.fmin(np.fmax(steps, np.float32(0), out=steps), self._levels, out=steps), out=steps)
        else:
            steps[...] = nearest_int(steps)
        np.clip(steps, np.float32(0), self._levels, out=steps)
        return steps

    def off(self, codes: np.ndarray, scale: np.ndarray, low: np.ndarray) -> np.ndarray:
        """By how much the values of codes deviate; valid until the next call."""
        off = self._off
        np.multiply(scale, codes, out=off)
        off += low
        off -= self._x
        return off


def symmetric_search(x: np.ndarray, w: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """`make_qx_quants`: codes uint8 [run, B], levels -half .. half - 1 with `half` added, and the scale.

    The value of largest magnitude lies at -half, and at up to 0.9 further in or out. Of zeros all codes are 0.
    """
    extreme, magnitude = largest_magnitude(x)
    numerators = np.array([-(np.float32(half) + np.float32(0.1) * np.float32(step)) for step in TRIED], np.float32)
    fast = compiled()
    if fast is not None:
        given = (np.ascontiguousarray(x), np.ascontiguousarray(w), np.float32(half))
        codes, (scale,) = fast.symmetric_search(*given, extreme, numerators)
    else:
        codes, scale = _symmetric_search(x, w, half, extreme, numerators)
    empty = magnitude < LEAST
    codes[:, empty] = 0
    scale[empty] = 0
    return codes, scale


def _symmetric_search(
    x: np.ndarray, w: np.ndarray, half: int, extreme: np.ndarray, numerators: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By numpy; of zeros neither codes nor scale mean anything."""
    wx = w * x
    levels, products = np.empty_like(x), np.empty_like(x)
    low, high = np.float32(-half), np.float32(half - 1)

    def sums(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        np.multiply(inverse, x, out=levels)
        np.clip(np.rint(levels, out=levels), low, high, out=levels)  # no further than half + 0.9, where not empty
        sum_lx = ordered_sum(np.multiply(wx, levels, out=products))
        np.multiply(w, levels, out=products)
        return sum_lx, ordered_sum(np.multiply(products, levels, out=products))

    sum_lx, sum_l2 = sums(numerators[0] / extreme)
    chosen = levels.copy()
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for numerator in numerators[1:]:
        sum_lx, sum_l2 = sums(numerator / extreme)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        if better.any():
            np.copyto(chosen, levels, where=better)
            np.copyto(scale, sum_lx / sum_l2, where=better)
            np.copyto(best, scale * sum_lx, where=better)
    chosen += np.float32(half)
    return chosen.astype(np.uint8), scale


def descended(x: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """`make_q3_quants`: as `symmetric_search` with the weights x², levels changed one by one while that gains."""
    extreme, magnitude = largest_magnitude(x)
    empty = magnitude < LEAST
    inverse = -np.float32(half) / extreme
    wx = x * x * x
    w = x * x
    levels = np.clip(nearest_int(inverse * x), -half, half - 1).astype(np.float32)
    sum_lx, sum_l2 = ordered_sum(wx * levels), ordered_sum(w * levels * levels)
    for _ in range(PASSES):
        changed = False
        for i in range(len(x)):
            old = levels[i]
            rest_x, rest_2 = sum_lx - wx[i] * old, sum_l2 - w[i] * old * old
            new = np.clip(nearest_int(x[i] * rest_2 / rest_x), -half, half - 1).astype(np.float32)
            new_x, new_2 = rest_x + wx[i] * new, rest_2 + w[i] * new * new
            gains = new_x * new_x * sum_l2 > sum_lx * sum_lx * new_2
            taken = (rest_x > 0) & (new != old) & (new_2 > 0) & gains & ~empty
            if taken.any():
                changed = True
                for target, value in ((levels[i], new), (sum_lx, new_x), (sum_l2, new_2)):
                    np.copyto(target, value, where=taken)
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    levels += np.float32(half)
    levels[:, empty] = 0
    scale[empty] = 0
    return levels.astype(np.uint8), scale


def positive_search(x: np.ndarray, w: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """`make_qp_quants`: integers uint8 [run, B], up to `levels`, of positive values, and their scale.

    What is below zero wraps, as it does in C.
    """
    highest = np.zeros_like(x[0])
    for row in x:
        np.copyto(highest, row, where=row > highest)
    empty = highest < LEAST
    inverse = np.float32(levels) / highest
    first = nearest_int(inverse * x).astype(np.uint8)
    best = _weighted_error(x, w, first, 1 / inverse)
    for step in (*range(-4, 0), *range(1, 5)):
        tried = (np.float32(0.1) * np.float32(step) + np.float32(levels)) / highest
        error = _weighted_error(x, w, np.minimum(nearest_int(tried * x), levels), 1 / tried)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(inverse, tried, where=better)
    nearest = np.minimum(nearest_int(inverse * x), levels)
    found = nearest.astype(np.float32)
    sum_lx, sum_l2 = ordered_sum(w * x * found), ordered_sum(w * found * found)
    integers = nearest.astype(np.uint8)
    for _ in range(PASSES):
        changed = False
        for i in range(len(x)):
            old = integers[i].astype(np.float32)
            rest_x, rest_2 = sum_lx - w[i] * x[i] * old, sum_l2 - w[i] * old * old
            new = np.minimum(nearest_int(x[i] * rest_2 / rest_x), levels)
            value = new.astype(np.float32)
            new_x, new_2 = rest_x + w[i] * x[i] * value, rest_2 + w[i] * value * value
            gains = new_x * new_x * sum_l2 > sum_lx * sum_lx * new_2
            taken = (rest_x > 0) & (rest_2 > 0) & (new != integers[i]) & gains & ~empty
            if taken.any():
                changed = True
                np.copyto(integers[i], new.astype(np.uint8), where=taken)
                np.copyto(sum_lx, new_x, where=taken)
                np.copyto(sum_l2, new_2, where=taken)
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    integers[:, empty] = 0
    scale[empty] = 0
    return integers, scale


def _weighted_error(x: np.ndarray, w: np.ndarray, integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    off = x - scale * integers.astype(np.float32)
    return ordered_sum(w * off * off)

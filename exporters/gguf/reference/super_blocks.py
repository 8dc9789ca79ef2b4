"""ggml's quantizers of K-quants: float32 (n, 256), and importance weights of that shape or None, to parts of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.arithmetic import (
    LEAST,
    across,
    along,
    clipped_nearest,
    half,
    largest_magnitude,
    nearest_int,
    ordered_sum,
    sub_blocks,
)
from quantkit.exporters.gguf.reference.searches import OffsetSearch, descended, positive_search, symmetric_search
from quantkit.exporters.gguf.types.parts import Layout, Parts
from quantkit.exporters.gguf.types.super_blocks import LAYOUTS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K

Quantizer = Callable[[np.ndarray, "np.ndarray | None"], Parts]


def importance(x: np.ndarray, weights: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """What the square of an error counts for: weight * sqrt(mean_square + x²), all float32 [run, B]."""
    found: np.ndarray = weights * np.sqrt(mean_square + x * x)
    return found


def mean_squares(x: np.ndarray, factor: float, run: int) -> np.ndarray:
    """factor * Σx² / 256 of every block of (n, 256), for each of its sub-blocks: [n * 256 / run]."""
    squares = ordered_sum(np.ascontiguousarray((x * x).T))
    return np.repeat(np.float32(factor) * squares / np.float32(x.shape[1]), x.shape[1] // run)


@dataclass(frozen=True, slots=True)
class WithMinimum:
    """Q2_K, Q4_K and Q5_K.

    layout: of the type. plain, weighted: the search without importance weights and with them. limit: the largest scale
    or minimum. held: in which of the two modes ggml holds integers to the limit; in the others one below zero wraps,
    and spills into its neighbours' bits. factor: of the mean square beside the square of a weight.
    """

    layout: Layout
    plain: OffsetSearch
    weighted: OffsetSearch
    limit: int
    held: tuple[bool, bool]
    factor: float

    def __call__(self, values: np.ndarray, weights: np.ndarray | None) -> Parts:
        """The type's quantizer."""
        n, x = len(values), sub_blocks(values, self.layout.sub_block)
        if weights is None:
            codes, scale, minimum = self.plain.run(x, self._plain_importance(x))
            scales, d = self._units(across(scale, n))
            mins, dmin = self._units(across(minimum, n))
        else:
            squares = mean_squares(values, self.factor, len(x))
            w = importance(x, sub_blocks(weights, len(x)), squares)
            codes, scale, minimum = self.weighted.run(x, w)
            sums = across(ordered_sum(w), n)
            scales, d = positive_search(across(scale, n), sums, self.limit)
            mins, dmin = positive_search(across(minimum, n), sums, self.limit)
        if self.held[weights is not None]:
            scales, mins = np.minimum(scales, np.uint8(self.limit)), np.minimum(mins, np.uint8(self.limit))
        parts = Parts(
            codes=along(codes, n),
            d=half(d),
            scales=np.ascontiguousarray(scales.T),
            dmin=half(dmin),
            mins=np.ascontiguousarray(mins.T),
        )
        return self._requantized(x, codes, self._as_stored(parts))

    def _plain_importance(self, x: np.ndarray) -> np.ndarray:
        weights: np.ndarray = np.abs(x)
        if not self.plain.absolute:
            weights += np.sqrt(ordered_sum(x * x) / np.float32(len(x)))
        return weights

    def _units(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of values (k, n) how many units each is, uint8 as in C, and the unit of every block."""
        limit = np.float32(self.limit)
        largest = np.zeros_like(values[0])
        for row in values:
            np.copyto(largest, row, where=row > largest)
        counts = np.where(largest > 0, limit / largest, np.float32(0))
        return nearest_int(counts * values).astype(np.uint8), largest / limit

    def _as_stored(self, parts: Parts) -> Parts:
        """Scales and minimums as they come back from the bits that they are written to."""
        assert parts.scales is not None
        assert parts.mins is not None
        if max(parts.scales.max(initial=0), parts.mins.max(initial=0)) <= self.limit:
            return parts
        return self.layout.unpack(self.layout.pack(parts))

    def _requantized(self, x: np.ndarray, codes: np.ndarray, parts: Parts) -> Parts:
        """`parts` with the codes that are nearest to the stored scales; of a scale of 0 those of the search."""
        assert parts.scales is not None
        assert parts.mins is not None
        assert parts.dmin is not None
        steps = (parts.d.astype(np.float32)[:, None] * parts.scales).reshape(-1)
        offsets = (parts.dmin.astype(np.float32)[:, None] * parts.mins).reshape(-1)
        again = clipped_nearest((x + offsets) / steps, 0, self.plain.levels)
        np.copyto(codes, again, where=steps != 0)
        return replace(parts, codes=along(codes, len(parts.d)))


def quantize_q3_k(values: np.ndarray, weights: np.ndarray | None) -> Parts:
    """Q3_K: signed scales of six bits, without weights searched by descent, with them as Q6_K's."""
    n, x = len(values), sub_blocks(values, 16)
    if weights is None:
        codes, scale = descended(x, 4)
        scale = across(scale, n)
        extreme, _ = largest_magnitude(scale)
        inverse = np.float32(-32) / extreme
        scales = (clipped_nearest(inverse * scale, -32, 31) + np.int8(32)).astype(np.uint8)
        scales[:, extreme == 0] = 0
        d = np.where(extreme != 0, 1 / inverse, np.float32(0))
    else:
        w = importance(x, sub_blocks(weights, 16), mean_squares(values, 2, 16))
        codes, scale = symmetric_search(x, w, 4)
        scales, d = symmetric_search(across(scale, n), across(ordered_sum(w), n), 32)
    unit = half(d)
    steps = (unit.astype(np.float32) * (scales.astype(np.float32) - np.float32(32))).T.reshape(-1)
    again = (clipped_nearest(x / steps, -4, 3) + np.int8(4)).astype(np.uint8)
    np.copyto(codes, again, where=steps != 0)
    return Parts(codes=along(codes, n), d=unit, scales=np.ascontiguousarray(scales.T))


def quantize_q6_k(values: np.ndarray, weights: np.ndarray | None) -> Parts:
    """Q6_K: signed scales of eight bits."""
    n, x = len(values), sub_blocks(values, 16)
    codes, scale = symmetric_search(x, x * x if weights is None else sub_blocks(weights, 16), 32)
    scale = across(scale, n)
    extreme, magnitude = largest_magnitude(scale)
    empty = magnitude < LEAST
    inverse = np.float32(-128) / extreme
    unit = half(np.where(empty, np.float32(0), 1 / inverse))
    scales = np.minimum(nearest_int(inverse * scale), 127).astype(np.int8)
    scales[:, empty] = 0
    steps = (unit.astype(np.float32) * scales).T.reshape(-1)
    again = (clipped_nearest(x / steps, -32, 31) + np.int8(32)).astype(np.uint8)
    np.copyto(codes, again, where=steps != 0)
    codes = along(codes, n)
    codes[empty] = 0
    return Parts(codes=codes, d=unit, scales=np.ascontiguousarray(scales.T))


QUANTIZERS: Mapping[BlockType, Quantizer] = {
    Q2_K: WithMinimum(
        LAYOUTS[Q2_K],
        OffsetSearch(3, -0.5, 0.1, 15, absolute=True),
        OffsetSearch(3, -0.9, 0.05, 36, weighted=True),
        limit=15,
        held=(False, False),
        factor=1,
    ),
    Q3_K: quantize_q3_k,
    Q4_K: WithMinimum(
        LAYOUTS[Q4_K],
        OffsetSearch(15, -1, 0.1, 20),
        OffsetSearch(15, -0.9, 0.05, 36, weighted=True),
        limit=63,
        held=(True, False),
        factor=2,
    ),
    Q5_K: WithMinimum(
        LAYOUTS[Q5_K],
        OffsetSearch(31, -0.5, 0.1, 15),
        OffsetSearch(31, -0.9, 0.05, 36, weighted=True),
        limit=63,
        held=(True, True),
        factor=2,
    ),
    Q6_K: quantize_q6_k,
}

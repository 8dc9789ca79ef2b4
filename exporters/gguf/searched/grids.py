"""What the codes of a block type can be, and the scales that are tried for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.codebooks import IQ4_NL, IQ4_XS, MXFP4
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from quantkit.tensors.level_tables import LevelTable

REACH = 256
"""Tables are looked up by halves between -REACH and REACH: all borders between levels are multiples of one half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Levels, and what they are multiplied by.

    run: weights of a scale. low, high: the ends of evenly spaced levels. table: or their name, see
    `quantkit.tensors.level_tables`. minima: whether levels rise from a minimum of their own. multiples: least and most
    of a sub-scale; None where every scale is a float16 of its own.
    tried: with minima the number of steps that the range is divided by; else, of either sign, shares of the scale that
    puts the value of largest magnitude at the lowest level.
    """

    run: int
    low: int
    high: int
    tried: tuple[float, ...]
    table: str = ""
    minima: bool = False
    multiples: tuple[int, int] | None = None

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The nearest levels, float32; `values` is overwritten."""
        if not self.table:
            np.rint(values, out=values)
            np.clip(values, self.low, self.high, out=values)
            return values
        values += values
        np.clip(np.floor(values, out=values), -REACH, REACH - 1, out=values)
        values += np.float32(REACH)
        found: np.ndarray = np.take(_nearest_levels(self.table), values.astype(np.int16))
        return found

    def codes(self, levels: np.ndarray) -> np.ndarray:
        """The codes of levels: uint8."""
        if not self.table:
            codes: np.ndarray = (levels - np.float32(self.low)).astype(np.uint8)
            return codes
        return LevelTable(self.table).nearest_codes(levels)


@cache
def _nearest_levels(table: str) -> np.ndarray:
    """Float32 [2 REACH]: the level nearest to what lies in each half; of two as near the higher one."""
    levels = LevelTable(table)
    return levels.of(levels.nearest_codes(np.arange(-REACH, REACH, dtype=np.float32) / np.float32(2)))


def _shares(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(float(share) for share in np.linspace(first, last, count))


def _both(first: float, last: float, count: int) -> tuple[float, ...]:
    """Of either sign, and 1 first."""
    shares = (1.0, *_shares(first, last, count))
    return (*shares, *(-share for share in shares))


GRIDS: Mapping[BlockType, Grid] = {
    Q2_K: Grid(run=16, low=0, high=3, minima=True, multiples=(0, 15), tried=_shares(1.9, 4.3, 13)),
    Q4_K: Grid(run=32, low=0, high=15, minima=True, multiples=(0, 63), tried=_shares(13, 17, 13)),
    Q5_K: Grid(run=32, low=0, high=31, minima=True, multiples=(0, 63), tried=_shares(28.5, 32.7, 13)),
    blocks.Q4_1: Grid(run=32, low=0, high=15, minima=True, tried=_shares(13, 17, 17)),
    blocks.Q5_1: Grid(run=32, low=0, high=31, minima=True, tried=_shares(28.5, 32.7, 15)),
    Q3_K: Grid(run=16, low=-4, high=3, multiples=(-32, 31), tried=_both(0.6, 1.25, 13)),
    Q6_K: Grid(run=16, low=-32, high=31, multiples=(-128, 127), tried=_both(0.9, 1.05, 13)),
    IQ4_XS: Grid(run=32, low=-127, high=113, table="iq4-nl", multiples=(-32, 31), tried=_both(0.75, 1.17, 13)),
    IQ4_NL: Grid(run=32, low=-127, high=113, table="iq4-nl", tried=_both(0.75, 1.17, 15)),
    MXFP4: Grid(run=32, low=-12, high=12, table="fp4", tried=(1, 2, 0.5, 4)),
    blocks.Q4_0: Grid(run=32, low=-8, high=7, tried=_both(0.75, 1.17, 15)),
    blocks.Q5_0: Grid(run=32, low=-16, high=15, tried=_both(0.85, 1.09, 15)),
    blocks.Q8_0: Grid(run=32, low=-128, high=127, tried=_both(0.99, 1.01, 7)),
}
"""Of MXFP4 `tried` are multiples of the power of two that ggml takes."""

"""Levels that are not evenly spaced: what codes of 4 bits stand for in llama.cpp's IQ4_NL and in OCP's FP4 (E2M1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import UnsupportedSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TABLES: Mapping[str, tuple[int, ...]] = {
    "iq4-nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "fp4": (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12),
}
"""The level of every code; those of FP4 are doubled, and its code 8 is another zero."""


@dataclass(frozen=True, slots=True)
class LevelTable:
    """The levels of codes 0, 1, 2 ... by name.

    Raises:
        UnsupportedSpec: there is no table of that name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in TABLES:
            raise UnsupportedSpec(f"unknown table of levels {self.name[:80]!r}", hint=f"tables: {', '.join(TABLES)}")

    @property
    def levels(self) -> np.ndarray:
        """Float32 [codes]."""
        return np.array(TABLES[self.name], np.float32)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return float(min(TABLES[self.name])), float(max(TABLES[self.name]))

    def of(self, codes: np.ndarray) -> np.ndarray:
        """The levels of codes: float32 of that shape, a copy."""
        found: np.ndarray = self.levels[codes]
        return found

    def nearest_codes(self, x: np.ndarray) -> np.ndarray:
        """The code of the level nearest to every number, of two as near the higher one's: uint8 of that shape."""
        levels, codes = np.unique(self.levels, return_index=True)
        found: np.ndarray = codes[np.searchsorted(_borders(levels), x, side="right")].astype(np.uint8)
        return found

    def on(self, device: torch.device) -> TableLevels:
        """What solvers round to."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        levels = np.unique(self.levels)
        return TableLevels(torch.from_numpy(levels).to(device), torch.from_numpy(_borders(levels)).to(device))

    def codes(self, levels: Tensor) -> Tensor:
        """The codes of levels: integral float32."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        known, codes = np.unique(self.levels, return_index=True)
        places = torch.bucketize(levels.contiguous(), torch.from_numpy(known).to(levels.device))
        return torch.from_numpy(codes.astype(np.float32)).to(levels.device)[places]


@dataclass(frozen=True, slots=True, eq=False)
class TableLevels:
    """See `quantkit.tensors.scheme.Levels`. levels: rising, [n]. borders: half-way between them, [n - 1]."""

    levels: Tensor
    borders: Tensor

    def nearest_(self, x: Tensor) -> Tensor:
        """See `quantkit.tensors.scheme.Levels`; of two as near the higher one."""
        import torch  # noqa: PLC0415 - planning and reading do without it

        return x.copy_(self.levels[torch.bucketize(x.contiguous(), self.borders, right=True)])


def _borders(levels: np.ndarray) -> np.ndarray:
    middles: np.ndarray = (levels[1:] + levels[:-1]) / np.float32(2)
    return middles

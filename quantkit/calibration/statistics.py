"""What the inputs of a linear layer look like on the calibration sequences.

Products of up to 512 tokens are float32, their sums float64 and in a fixed order, rounded to float32 at the end: within
float32 rounding of float64 throughout, and the same for any number of threads (see `quantkit.threads`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from quantkit.models.loading import CPU
from quantkit.threads import torch_map

PANEL = 512
"""Columns of a Hessian that are computed at a time; part of what the last bits of a result depend on."""
TOKENS = 512
"""Tokens whose products are added up in float32; likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """What the inputs x [cols] look like that some linear layers read.

    hessian: sum of x xᵀ over all tokens, float32 [cols, cols], symmetric (the paper's H without its factor 2). Methods
        work on the device that it is on.
    tokens: how many.
    """

    hessian: Tensor
    tokens: int

    @classmethod
    def of_all(cls, parts: Sequence[LayerStatistics]) -> LayerStatistics:
        """The sum of several, at least one."""
        hessian = parts[0].hessian.clone()
        for part in parts[1:]:
            hessian += part.hessian
        return cls(hessian, sum(part.tokens for part in parts))

    def without(self, part: LayerStatistics) -> LayerStatistics:
        """What is left of a sum when one of its parts is taken out."""
        return LayerStatistics(self.hessian - part.hessian, self.tokens - part.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """(x - y) w of one sequence, without its first tokens: computed piece by piece, and never in memory as a whole.

    x: float32 [tokens, cols]. weight: w, [tokens less the skipped ones, 1] or a number. minus: y, None = 0.
    """

    x: Tensor
    skip: int
    weight: Tensor | float
    minus: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of all of it."""
        return max(len(self.x) - self.skip, 0), self.x.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.x.device

    def __getitem__(self, part: tuple[slice, slice]) -> Tensor:
        tokens, columns = part
        behind = slice(tokens.start + self.skip, tokens.stop + self.skip), columns
        values = self.x[behind] if self.minus is None else self.x[behind] - self.minus[behind]
        return values * (self.weight[tokens] if isinstance(self.weight, Tensor) else self.weight)


Rows = Tensor | Counted


def input_statistics(
    inputs: Sequence[Rows], cols: int, threads: int = 1, device: torch.device = CPU
) -> LayerStatistics:
    """Statistics of float32 `inputs`, each [tokens, cols] on `device`."""
    hessian = torch.empty((cols, cols), device=device)

    def accumulate(corner: tuple[int, int]) -> None:
        rows, columns = (slice(start, start + PANEL) for start in corner)
        total = _sum((x[run, rows].T @ x[run, columns] for x, run in _runs(inputs)), hessian[rows, columns])
        hessian[rows, columns] = total
        hessian[columns, rows] = total.T if rows != columns else (total + total.T) / 2

    torch_map(accumulate, combinations_with_replacement(range(0, cols, PANEL), 2), threads)
    return LayerStatistics(hessian, sum(x.shape[0] for x in inputs))


def cross_products(left: Sequence[Rows], right: Sequence[Rows], threads: int = 1) -> Tensor:
    """Σ leftᵀ right over pairs (at least one) of float32 [tokens, n] and [tokens, m]: float32 [n, m]."""
    products = torch.empty((left[0].shape[1], right[0].shape[1]), device=left[0].device)

    def accumulate(corner: tuple[int, ...]) -> None:
        rows, columns = (slice(start, start + PANEL) for start in corner)
        pairs = zip(_runs(left), _runs(right), strict=True)
        panel = products[rows, columns]
        panel.copy_(_sum((a[run, rows].T @ b[run, columns] for (a, run), (b, _) in pairs), panel))

    torch_map(accumulate, product(*(range(0, size, PANEL) for size in products.shape)), threads)
    return products


def _sum(parts: Iterable[Tensor], like: Tensor) -> Tensor:
    total = torch.zeros_like(like, dtype=torch.float64)
    for part in parts:
        total += part
    return total


def _runs(sequences: Sequence[Rows]) -> Iterator[tuple[Rows, slice]]:
    """The sequences in runs of at most TOKENS tokens."""
    for x in sequences:
        for start in range(0, x.shape[0], TOKENS):
            yield x, slice(start, min(start + TOKENS, x.shape[0]))

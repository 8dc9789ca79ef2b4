"""Error feedback from row to row: what one output lost is made up for by others, where the model weighs them together.

The cost is tr(G E H Eᵀ) (`quantkit.calibration.fisher`). For a fixed error of some rows it is least when the rest aim
not at their weights but at the minimum of the quadratic in G alone: the columns' H has no part in it. So rows are
taken in blocks, those with the largest G_ii first, every block is solved as ever, and what was lost moves the aims of
those to come. With G = U D Uᵀ, U upper triangular with ones on its diagonal, and a the rows before block b,

    aim_b = W_b - U_bb⁻ᵀ U_abᵀ (Q - W)_a                          (the feedback of columns, on the product's other side)

Within a block rows are taken for independent; many small blocks would be better and slower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.solver.cholesky import unit_upper
from quantkit.threads import TorchWorkers

DAMPING = 0.1
"""Share of G's mean diagonal added to it; G is an estimate from few tokens."""
BLOCKS = 8
BLOCKS_OF_WIDE = 4
"""For matrices with more than twice as many columns as rows: blocks that take longest should keep two threads busy."""
COLUMNS = 512
"""Worked on together; part of what the last bits of a result depend on."""
FEWEST_ROWS = 32
"""In a block: fewer take nearly as long."""


def relative(sensitivity: Tensor) -> Tensor | None:
    """G [rows, rows] in units of its mean diagonal, damped; None where it is zero or not finite."""
    mean = sensitivity.diagonal().mean()
    if not bool((mean > 0) & torch.isfinite(sensitivity.sum())):
        return None
    made = sensitivity / mean
    made.diagonal().add_(DAMPING)
    return made


def solving_order(sensitivity: Tensor, threads: int) -> tuple[Tensor, Tensor] | None:
    """The order of the rows, int64 [rows], and U of G in it, float32 [rows, rows]; None when it has none."""
    G = relative(sensitivity)
    if G is None:
        return None
    order = torch.argsort(G.diagonal(), descending=True, stable=True)
    factor = unit_upper(G, order, threads)
    return None if factor is None else (order, factor)


def row_blocks(rows: int, cols: int) -> list[slice]:
    """Blocks of rows in solving order."""
    size = max(FEWEST_ROWS, -(-rows // (BLOCKS if cols <= 2 * rows else BLOCKS_OF_WIDE)))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def aimed(targets: Tensor, lost: Tensor, factor: Tensor, block: slice, workers: TorchWorkers) -> Tensor:
    """What the rows of `block` aim at, [block, cols], instead of their `targets` [rows, cols].

    lost: Q - W [rows, cols] of the rows before the block. factor: U [rows, rows]. All in solving order.
    """
    before, corner = slice(0, block.start), factor[block, block].T
    aims = targets[block].clone()

    def move(start: int) -> None:
        columns = slice(start, start + COLUMNS)
        owed = factor[before, block].T @ lost[before, columns]
        aims[:, columns] -= torch.linalg.solve_triangular(corner, owed, upper=False, unitriangular=True)

    workers(move, range(0, targets.shape[1], COLUMNS))
    return aims

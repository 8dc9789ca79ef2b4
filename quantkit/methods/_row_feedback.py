"""Error feedback from row to row: what one output lost is made up for by others, where the model weighs them together.

The cost is tr(G E H Eᵀ) (`quantkit.sensitivity`). For a fixed error of some rows it is least when the rest, R, aim not
at W_R but at W_R + X, X the minimum of the quadratic in G alone: the columns' H has no part in it. So rows are taken
in blocks, those with the largest G_ii first, every block is solved as ever, and what it lost moves the targets of those
to come. With G⁻¹ = Uᵀ U and δ the loss of block b,

    W_R += U_bRᵀ U_bb⁻ᵀ δ                                  (GPTQ's own step, for the other side of the product)

Within a block rows are taken for independent; many small blocks would be better and slower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.methods._feedback import inverse_factor

DAMPING = 0.1
"""Share of G's mean diagonal added to it; G is an estimate from few tokens."""
BLOCKS = 8
BLOCKS_OF_WIDE = 4
"""For matrices with more than twice as many columns as rows, of which a block takes longest."""


def relative(sensitivity: Tensor) -> Tensor | None:
    """G [rows, rows] in units of its mean diagonal, damped; None where it is zero or not finite."""
    mean = sensitivity.diagonal().mean()
    if not bool((mean > 0) & torch.isfinite(sensitivity).all()):
        return None
    made = sensitivity / mean
    made.diagonal().add_(DAMPING)
    return made


def solving_order(sensitivity: Tensor, threads: int) -> tuple[Tensor, Tensor] | None:
    """The order of the rows, int64 [rows], and U of G in it, float32 [rows, rows]; None when it has no factor."""
    G = relative(sensitivity)
    if G is None:
        return None
    order = torch.argsort(G.diagonal(), descending=True, stable=True)
    factor = inverse_factor(G, order, threads)
    return None if factor is None else (order, factor)


def row_blocks(rows: int, cols: int) -> list[slice]:
    """Blocks of rows in solving order."""
    size = max(1, -(-rows // (BLOCKS if cols <= 2 * rows else BLOCKS_OF_WIDE)))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def pass_on(targets: Tensor, lost: Tensor, factor: Tensor, block: slice) -> None:
    """Move, in place, the targets [rows, cols] of the rows behind `block` by what it `lost` [block, cols]."""
    rest = slice(block.stop, len(targets))
    loss = torch.linalg.solve_triangular(factor[block, block].T, lost, upper=False)
    targets[rest].addmm_(factor[block, rest].T, loss)

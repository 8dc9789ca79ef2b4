"""Error feedback with fixed scales: GPTQ with the columns in any order.

Frantar et al., "GPTQ" (2022), algorithm 1, as Chee et al., "QuIP" (2023) write it, which needs no inverse. With
H = X Xᵀ (damped), columns permuted so that those with the largest H_jj come first ("act-order"), and H = U D Uᵀ, U
upper triangular with ones on its diagonal:

    q_j = nearest level of w_j + Σ_i<j (w_i - q_i) U_ij                                     column by column

Every group's parameters are chosen beforehand, so groups stay runs of consecutive columns on disk whatever
the order of the solve ("static groups"): no `g_idx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from quantkit.tensors.scheme import Levels

BLOCK_COLUMNS = 128
"""Columns after which the rest is updated in one product: GPTQ's lazy batch."""
STRIP_COLUMNS = 32
"""Columns of a block that are updated one by one; a product with all of them costs little more than to choose some."""


def feedback_steps(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    levels: Sequence[Levels],
    groups: Sequence[int],
    *,
    turn: Lock,
    width: int = BLOCK_COLUMNS,
    before_block: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The level of every weight, with error feedback in the order of the rows of `weight`.

    Args:
        weight: float32 [cols, rows], columns of the matrix in solving order, less the offsets of their groups;
            overwritten with what is lost, W - Q.
        factor: U of H, `quantkit.solver.cholesky.unit_upper`, [cols, cols] in the same order.
        scale: float32 [groups, rows].
        levels: of every group.
        groups: the group of every column in solving order.
        turn: held while columns are looped over.
        width: columns after which the rest is updated in one product.
        before_block: called with a block's first column and the targets as they are by then; may change, in place, the
            scales and levels of groups that begin there.

    Returns:
        Float32 [cols, rows]; a weight less its offset is scale * level.
    """
    targets = weight.clone()
    steps = torch.empty_like(weight)
    scales = scale.unbind()
    for start in range(0, len(weight), width):
        stop = min(start + width, len(weight))
        if before_block is not None:
            before_block(start, targets)
        with turn:
            for first in range(start, stop, STRIP_COLUMNS):
                strip, rest = slice(first, min(first + STRIP_COLUMNS, stop)), slice(first + STRIP_COLUMNS, stop)
                by_column = [(scales[group], levels[group]) for group in groups[strip]]
                _round(targets[strip], steps[strip], weight[strip], factor[strip, strip], by_column)
                targets[rest].addmm_(factor[strip, rest].T, weight[strip])
        targets[stop:].addmm_(factor[start:stop, stop:].T, weight[start:stop])
    return steps


def _round(
    targets: Tensor, steps: Tensor, lost: Tensor, factor: Tensor, groups: Sequence[tuple[Tensor, Levels]]
) -> None:
    """Columns one after the other, each aiming at what those before it have lost; `lost` holds the weights at first.

    groups: scale [rows] and levels of every column.
    """
    lost_by_row = lost.T
    columns = zip(*(x.unbind() for x in (targets, steps, lost, factor.triu(1).T.contiguous())), groups, strict=True)
    for target, q, w, u, (scale, levels) in columns:
        target.addmv_(lost_by_row, u)  # u is zero for this and later columns
        levels.nearest_(torch.div(target, scale, out=q))
        w.addcmul_(scale, q, value=-1.0)

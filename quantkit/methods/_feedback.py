"""Error feedback on a fixed grid: GPTQ with the columns in any order.

Frantar et al., "GPTQ" (2022), algorithm 1, as Chee et al., "QuIP" (2023) write it, which needs no inverse. With
H = X Xᵀ (damped), columns permuted so that those with the largest H_jj come first ("act-order"), and H = U D Uᵀ, U
upper triangular with ones on its diagonal:

    q_j = nearest grid point of w_j + Σ_i<j (w_i - q_i) U_ij                                     column by column

Every group's scale and zero point are chosen beforehand, so groups stay runs of consecutive columns on disk whatever
the order of the solve ("static groups"): no `g_idx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from quantkit.methods._refine import Limits

BLOCK_COLUMNS = 128
"""The paper's lazy batch."""


def feedback_steps(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    limits: Limits,
    groups: Sequence[int],
    *,
    turn: Lock,
    width: int = BLOCK_COLUMNS,
    before_block: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Steps q - z of every weight, with error feedback in the order of the rows of `weight`.

    Args:
        weight: float32 [cols, rows], columns of the matrix in solving order; overwritten with what is lost, W - Q.
        factor: U of H, `quantkit.factorization.unit_upper`, [cols, cols] in the same order.
        scale: float32 [groups, rows].
        limits: of the steps of every group.
        groups: the group of every column in solving order.
        turn: held while columns are looped over.
        width: columns after which the rest is updated in one product.
        before_block: called with a block's first column and the targets as they are by then; may change, in place, the
            scales and limits of groups that begin there.

    Returns:
        Integral float32 [cols, rows]; the weight is `scale * steps`.
    """
    targets = weight.clone()
    steps = torch.empty_like(weight)
    scales = scale.unbind()
    for start in range(0, len(weight), width):
        stop = min(start + width, len(weight))
        if before_block is not None:
            before_block(start, targets)
        block = slice(start, stop)
        corner = factor[block, block]
        columns = zip(*(x[block].unbind() for x in (targets, steps, weight)), groups[block], strict=True)
        with turn:
            for i, (t, q, w, g) in enumerate(columns):
                torch.div(t, scales[g], out=q).round_().clamp_(*limits[g])
                w.addcmul_(scales[g], q, value=-1.0)
                targets[start + i + 1 : stop].addr_(corner[i, i + 1 :], w)
        targets[stop:].addmm_(factor[block, stop:].T, weight[block])
    return steps

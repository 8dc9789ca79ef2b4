"""Error feedback on a fixed grid: GPTQ with the columns in any order.

Frantar et al., "GPTQ" (2022), algorithm 1. With H = X Xᵀ (damped), columns permuted so that those with the largest
H_jj come first ("act-order"), and H⁻¹ = Uᵀ U, U upper triangular:

    q_i = nearest grid point of w_i;  e_i = (w_i - q_i) / U_ii;  w_j -= e_i U_ij  for j > i      column by column

Every group's scale and zero point are chosen beforehand, so groups stay runs of consecutive columns on disk whatever
the order of the solve ("static groups"): no `g_idx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantkit.factorization import cholesky, inverse_of_upper

BLOCK_COLUMNS = 128
"""The paper's lazy batch."""
DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Tried in turn, as a share of H's mean diagonal, until H can be factored."""


def inverse_factor(damped_hessian: Tensor, order: Tensor, threads: int = 1) -> Tensor | None:
    """Upper triangular U [cols, cols] with H⁻¹ = Uᵀ U, H in this order; None when it cannot be factored.

    U is obtained without inverting H: H = R Rᵀ with R upper triangular gives U = R⁻¹, and R is the Cholesky factor of
    H with both axes reversed, reversed back. All float32.
    """
    backwards = order.flip(0)
    lower = cholesky(damped_hessian[backwards][:, backwards], threads)
    if lower is None:
        return None
    factor = inverse_of_upper(lower.flip(0, 1), threads)
    return factor if bool(torch.isfinite(factor).all()) else None


def feedback_steps(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    limits: tuple[Tensor, Tensor],
    groups: Sequence[int],
    *,
    width: int = BLOCK_COLUMNS,
    before_block: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Steps q - z of every weight, with error feedback in the order of the rows of `weight`.

    Args:
        weight: float32 [cols, rows], columns of the matrix in solving order.
        factor: U [cols, cols] float32 in the same order.
        scale: float32 [groups, rows].
        limits: lowest and highest step, [groups, rows].
        groups: the group of every column in solving order.
        width: columns after which the rest is updated in one product.
        before_block: called with a block's first column and the weights as updated by then; may change, in place, the
            scales and limits of groups that begin there.

    Returns:
        Integral float32 [cols, rows]; the weight is `scale * steps`.
    """
    W, U = weight.clone(), factor
    steps = torch.empty_like(W)
    diagonal = U.diagonal().tolist()
    scales, lowest, highest = (x.unbind() for x in (scale, *limits))
    for start in range(0, len(W), width):
        stop = min(start + width, len(W))
        if before_block is not None:
            before_block(start, W)
        E = torch.empty((stop - start, W.shape[1]), device=W.device)
        block = slice(start, stop)
        columns = zip(W[block].unbind(), steps[block].unbind(), E.unbind(), groups[block], strict=True)
        for i, (w, q, e, g) in enumerate(columns, start=start):
            torch.div(w, scales[g], out=q).round_().clamp_(lowest[g], highest[g])
            torch.addcmul(w, scales[g], q, value=-1.0, out=e).div_(diagonal[i])
            W[i + 1 : stop].addr_(U[i, i + 1 : stop], e, alpha=-1.0)
        W[stop:].addmm_(U[block, stop:].T, E, alpha=-1.0)
    return steps

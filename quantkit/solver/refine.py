"""Descent on the true quadratic after GPTQ: group by group, first the scales, then the codes one by one.

With Q = s * steps, the error of a row is (Q - W) H (Q - W)ᵀ, and R = H (Q - W) is half its gradient. R is what
everything here needs and what costs most, so it is handed on from group to group.

Scale: for fixed steps the error is quadratic in the scale s of group g. Half its gradient is steps_g R_gᵀ, half its
second derivative A = steps_g H_gg steps_gᵀ, so the best scale is one Newton step away: s - steps_g R_gᵀ / A. It is
rounded to the stored dtype, and taken only where the error falls.

Codes ("CDQuant", Nair and Suggala 2024, cyclic form): the best real value of Q_j when all others stay is
Q_j - R_j / H_jj; the nearest grid point to it is never worse than the current one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

BLOCK_COLUMNS = 128
"""Columns after which the rest is updated in one product: GPTQ's lazy batch."""
STRIP_COLUMNS = 32
"""Columns of a block that are updated one by one; a product with all of them costs little more than to choose some."""

Limits = Sequence[tuple[Tensor, Tensor]]
"""Lowest and highest step of every group, float32 [rows]."""


def descend(
    R: Tensor,
    H: Tensor,
    steps: Tensor,
    scale: Tensor,
    limits: Limits,
    *,
    rounded: Callable[[Tensor], Tensor],
    turn: Lock,
    again: bool,
) -> None:
    """One pass over all groups, in place.

    Args:
        R: H (Q - W), float32 [cols, rows]; left up to date only if it is needed `again`.
        H: float32 [cols, cols], symmetric, positive diagonal.
        steps: integral float32 [cols, rows].
        scale: float32 [groups, rows].
        limits: of the steps.
        rounded: rounds scales to the stored dtype.
        turn: held while columns are looped over.
        again: whether another pass follows.
    """
    width = len(R) // len(scale)
    for group, limit in enumerate(limits):
        here = slice(group * width, (group + 1) * width)
        corner, old, s = H[here, here], steps[here], scale[group]
        before = old * s
        products = corner @ old
        moved = _newton(old, R[here], products, s, rounded)
        s.add_(moved)
        refined = _swept(products.mul_(moved).add_(R[here]).div_(s), corner, old, limit, turn)
        changed = slice(0 if again else here.stop, len(R))
        R[changed].addmm_(H[changed, here], torch.sub(refined * s, before, out=before))
        steps[here] = refined


def _newton(steps: Tensor, R: Tensor, products: Tensor, scale: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """What to add to the scales [rows] of a group, of which `products` = H_gg steps: 0 where nothing is gained."""
    gradient = (steps * R).sum(0)
    A = (steps * products).sum(0)
    wanted = scale - gradient / A
    moved = rounded(wanted) - scale
    gains = moved * (2 * gradient + moved * A) < 0
    return torch.where(gains & (wanted != 0) & torch.isfinite(moved), moved, 0.0)


def _swept(R: Tensor, H: Tensor, steps: Tensor, limit: tuple[Tensor, Tensor], turn: Lock) -> Tensor:
    """Better steps [width, rows] of a group, one after the other; `R`, in units of the scale, is overwritten."""
    refined = torch.zeros_like(steps)
    for start in range(0, len(steps), BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, len(steps)))
        with turn:
            _sweep(R[block], H[block, block], steps[block], refined[block], limit)
        R[block.stop :].addmm_(H[block.stop :, block], refined[block] - steps[block])
    return refined


def _sweep(R: Tensor, H: Tensor, steps: Tensor, refined: Tensor, limit: tuple[Tensor, Tensor]) -> None:
    """Columns of a block one after the other, into `refined`, which is zero at first."""
    weights, before = (-1 / H.diagonal()).tolist(), H.tril(-1)
    # Without what the old steps before each column contribute, the new ones are simply added.
    R.addmm_(before, steps, alpha=-1.0)
    for start in range(0, len(steps), STRIP_COLUMNS):
        strip = slice(start, start + STRIP_COLUMNS)
        R[strip].addmm_(before[strip, :start], refined[:start])
        by_row, couplings = refined[strip].T, before[strip, strip].contiguous()
        columns = (x.unbind() for x in (steps[strip], refined[strip], R[strip], couplings))
        for old, new, r, h, weight in zip(*columns, weights[strip], strict=True):
            r.addmv_(by_row, h)  # h is zero for this and later columns
            torch.add(old, r, alpha=weight, out=new).round_().clamp_(*limit)

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
from typing import Any

import torch
from torch import Tensor

BLOCK_COLUMNS = 128

Limits = Sequence[tuple[Any, Any]]
"""Lowest and highest step of every group: float32 [rows], or numbers, for which torch's clamp is an overload."""


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


def _swept(R: Tensor, H: Tensor, steps: Tensor, limit: tuple[Any, Any], turn: Lock) -> Tensor:
    """Better steps [width, rows] of a group, one after the other; `R`, in units of the scale, is overwritten."""
    refined = torch.empty_like(steps)
    energy = H.diagonal().tolist()
    for start in range(0, len(steps), BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, len(steps)))
        local, corner = R[block], H[block, block]
        # Without what the old steps before each column contribute, the new ones are simply added.
        local.addmm_(corner.tril(-1), steps[block], alpha=-1.0)
        columns = zip(*(x[block].unbind() for x in (steps, refined, R)), strict=True)
        with turn:
            for j, (old, new, r) in enumerate(columns):
                torch.add(old, r, alpha=-1 / energy[start + j], out=new).round_().clamp_(*limit)
                local[j + 1 :].addr_(corner[j + 1 :, j], new)
        R[block.stop :].addmm_(H[block.stop :, block], refined[block] - steps[block])
    return refined

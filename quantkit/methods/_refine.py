"""Descent on the true quadratic after GPTQ: codes one by one, then all scales of a row at once.

With Q = s * steps, the error of a row is (Q - W) H (Q - W)ᵀ, and R = H (Q - W) is half its gradient. R is what
everything here needs and what costs most, so it is handed on from step to step.

Codes ("CDQuant", Nair and Suggala 2024, cyclic form): the best real value of Q_j when all others stay is
Q_j - R_j / H_jj; the nearest grid point to it is never worse than the current one.

Scales: for fixed steps the error is quadratic in the row's group scales s. Half its gradient is steps_g R_gᵀ, half its
second derivative A_gk = steps_g H_gk steps_kᵀ, so the best scales are one Newton step away: s - A⁻¹ (steps_g R_gᵀ)_g.
They are rounded to the stored dtype, and taken only where the row's error falls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_COLUMNS = 128
RIDGE = 1e-6
"""Share of A's mean diagonal added to it: scales of all-zero groups stay where they are."""


def refined_steps(R: Tensor, H: Tensor, steps: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """One cyclic sweep of coordinate descent over all columns.

    Args:
        R: H (Q - W), float32 [cols, rows]; brought up to date in place.
        H: float32 [cols, cols], symmetric, positive diagonal.
        steps: float32 [cols, rows].
        scale: float32 [groups, rows].
        limits: lowest and highest step, [groups, rows].

    Returns:
        Better steps, integral float32 [cols, rows].
    """
    refined = torch.empty_like(steps)
    width = len(R) // len(scale)
    block_columns = BLOCK_COLUMNS if width % BLOCK_COLUMNS == 0 else width  # all of a block on one scale
    energy = H.diagonal().tolist()
    for start in range(0, len(R), block_columns):
        block, group = slice(start, start + block_columns), start // width
        s, low, high = scale[group], limits[0][group], limits[1][group]
        local, corner = R[block] / s, H[block, block]
        change = torch.empty_like(local)
        columns = zip(*(x.unbind() for x in (steps[block], refined[block], local, change)), strict=True)
        for j, (old, new, r, delta) in enumerate(columns):
            torch.add(old, r, alpha=-1 / energy[start + j], out=new).round_().clamp_(low, high)
            torch.sub(new, old, out=delta)
            local[j + 1 :].addr_(corner[j + 1 :, j], delta)
        R.addmm_(H[:, block], change.mul_(s))
    return refined


def refitted_scales(R: Tensor, H: Tensor, steps: Tensor, scale: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """The row-wise least-squares scales for fixed steps, [groups, rows], rounded by `rounded`.

    Args:
        R: H (Q - W) for the present scales, float32 [cols, rows].
        H: float32 [cols, cols].
        steps: float32 [cols, rows].
        scale: the present scales, float32 [groups, rows]; kept where the system has no finite solution.
        rounded: rounds to the stored dtype.
    """
    cols, rows = R.shape
    groups = len(scale)
    width = cols // groups
    A = torch.empty((rows, groups, groups), dtype=torch.float64, device=R.device)
    gradient = (steps * R).view(groups, width, rows).sum(1).T.double()
    for g in range(groups):
        # A is symmetric: the groups up to this one are enough.
        part = slice(g * width, (g + 1) * width)
        products = (H[: part.stop, part] @ steps[part]).mul_(steps[: part.stop])
        A[:, : g + 1, g] = A[:, g, : g + 1] = products.view(g + 1, width, rows).sum(1).T
    A.diagonal(dim1=1, dim2=2).add_(RIDGE * A.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).clamp(min=1e-30))
    change, info = torch.linalg.solve_ex(A, gradient)
    solved = scale.double() - change.T
    new = rounded(solved.float())
    usable = torch.isfinite(new) & (solved != 0) & (info == 0)
    return torch.where(usable, new, scale)

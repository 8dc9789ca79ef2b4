"""Descent on the true quadratic after GPTQ: codes one by one, then all scales of a row at once.

With Q = s * steps, the error of a row is (Q - W) H (Q - W)ᵀ, and R = H (Q - W) is half its gradient. R is what
everything here needs and what costs most, so it is handed on from step to step.

Codes ("CDQuant", Nair and Suggala 2024, cyclic form): the best real value of Q_j when all others stay is
Q_j - R_j / H_jj; the nearest grid point to it is never worse than the current one.

Scales: for fixed steps the error is quadratic in the row's group scales s, with A_gk = Σ steps_g H_gk steps_kᵀ and
b_g = steps_g H_g: Wᵀ, so s = A⁻¹ b. Rounded to the stored dtype, and taken only where the row's error falls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_COLUMNS = 128
RIDGE = 1e-6
"""Share of A's mean diagonal that holds scales of all-zero groups where they are."""


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
    group_width = len(R) // len(scale)
    # Views of all columns at once: taking them one by one costs as much as the arithmetic.
    grids = list(zip(*(x.unbind() for x in (scale, 1 / scale, *limits)), strict=True))
    energy = H.diagonal().tolist()
    for start in range(0, len(R), BLOCK_COLUMNS):
        block = slice(start, start + BLOCK_COLUMNS)
        local, corner = R[block].clone(), H[block, block]
        change = torch.empty_like(local)
        columns = zip(*(x.unbind() for x in (steps[block], refined[block], local, change)), strict=True)
        for j, (old, new, r, delta) in enumerate(columns):
            s, inverse, low, high = grids[(start + j) // group_width]
            torch.addcmul(old, r, inverse, value=-1 / energy[start + j], out=new).round_().clamp_(low, high)
            torch.sub(new, old, out=delta).mul_(s)
            local[j + 1 :].addr_(corner[j + 1 :, j], delta)
        R.addmm_(H[:, block], change)
    return refined


def refitted_scales(HW: Tensor, H: Tensor, steps: Tensor, scale: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """The row-wise least-squares scales for fixed steps, [groups, rows], rounded by `rounded`.

    Args:
        HW: H W, float32 [cols, rows]. H: float32 [cols, cols]. steps: float32 [cols, rows].
        scale: the present scales, float32 [groups, rows]; kept where the system has no finite solution.
        rounded: rounds to the stored dtype.
    """
    cols, rows = HW.shape
    groups = len(scale)
    width = cols // groups
    A = torch.empty((rows, groups, groups), dtype=torch.float64, device=HW.device)
    b = (steps * HW).view(groups, width, rows).sum(1).T.double()
    for g in range(groups):
        # A is symmetric: the groups up to this one are enough.
        part = slice(g * width, (g + 1) * width)
        products = (H[: part.stop, part] @ steps[part]).mul_(steps[: part.stop])
        A[:, : g + 1, g] = products.view(g + 1, width, rows).sum(1).T
        A[:, g, : g + 1] = A[:, : g + 1, g]
    ridge = RIDGE * A.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).clamp(min=1e-30)
    A.diagonal(dim1=1, dim2=2).add_(ridge)
    b += ridge * scale.T
    solved, info = torch.linalg.solve_ex(A, b)
    new = rounded(solved.T.float())
    usable = torch.isfinite(new) & (solved.T != 0) & (info == 0)
    return torch.where(usable, new, scale)

"""Descent on the true quadratic after GPTQ: codes one by one, then all scales of a row at once.

With Q = s * steps, the error of a row is (Q - W) H (Q - W)ᵀ.

Codes ("CDQuant", Nair and Suggala 2024, cyclic form): with R = (Q - W) H, the best real value of Q_j when all others
stay is Q_j - R_j / H_jj; the nearest grid point to it is never worse than the current one. R is kept up to date.

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


def refined_steps(W: Tensor, H: Tensor, steps: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """One cyclic sweep of coordinate descent over all columns.

    Args:
        W, steps, scale: float32 [cols, rows].
        limits: lowest and highest step, [cols, rows].
        H: float32 [cols, cols], symmetric, positive diagonal.

    Returns:
        Better steps, integral float32 [cols, rows].
    """
    steps = steps.clone()
    lowest, highest = limits
    R = H @ (steps * scale - W)
    diagonal = H.diagonal()
    for start in range(0, len(W), BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, len(W))
        change = torch.empty((stop - start, W.shape[1]), device=W.device)
        local, corner = R[start:stop], H[start:stop, start:stop]
        for i in range(start, stop):
            j = i - start
            wanted = torch.div(local[j], scale[i]).div_(-diagonal[i]).add_(steps[i])
            new = wanted.round_().clamp_(lowest[i], highest[i])
            delta = (new - steps[i]).mul_(scale[i])
            steps[i] = new
            change[j] = delta
            local[j + 1 :].addr_(corner[j + 1 :, j], delta)
        R[stop:].addmm_(H[stop:, start:stop], change)
    return steps


def refitted_scales(W: Tensor, H: Tensor, steps: Tensor, scale: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """The row-wise least-squares scales for fixed steps, [groups, rows], rounded by `rounded`.

    Args:
        W, steps: float32 [cols, rows]. H: float32 [cols, cols].
        scale: the present scales, float32 [groups, rows]; kept where the system has no finite solution.
        rounded: rounds to the stored dtype.
    """
    cols, rows = W.shape
    groups = len(scale)
    width = cols // groups
    A = torch.empty((rows, groups, groups), dtype=torch.float64, device=W.device)
    HW = H @ W
    b = (steps * HW).view(groups, width, rows).sum(1).T.double()
    for g in range(groups):
        part = slice(g * width, (g + 1) * width)
        A[:, :, g] = ((H[:, part] @ steps[part]) * steps).view(groups, width, rows).sum(1).T
    ridge = RIDGE * A.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).clamp(min=1e-30)
    A.diagonal(dim1=1, dim2=2).add_(ridge)
    b += ridge * scale.T
    solved, info = torch.linalg.solve_ex(A, b)
    new = rounded(solved.T.float())
    usable = torch.isfinite(new) & (solved.T != 0) & (info == 0)
    return torch.where(usable, new, scale)


def row_errors(W: Tensor, H: Tensor, values: Tensor) -> Tensor:
    """(Q - W) H (Q - W)ᵀ of every row, float32 [rows]; W and values are [cols, rows]."""
    D = values - W
    return ((H @ D) * D).sum(0)

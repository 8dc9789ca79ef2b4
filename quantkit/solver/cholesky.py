"""Triangular factors of large symmetric matrices, on several threads, with results that do not depend on how many.

LAPACK's threads would round otherwise for another number of them, and one thread alone takes minutes for the largest
matrices of an 8B model. So the blocked algorithms stand here, and LAPACK factors the corners. All of it is float32:
with a hundredth of its mean diagonal added a Hessian is well enough conditioned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.threads import torch_map, torch_workers

PANEL = 256
"""Columns of a block; part of what the last bits of a result depend on."""


def damped(hessian: Tensor, share: float) -> Tensor:
    """H [cols, cols] with `share` of its mean diagonal added, float32; 1 on the diagonal of dead columns."""
    diagonal = hessian.diagonal()
    made = hessian.to(torch.float32, copy=True)
    made.diagonal().copy_(torch.where(diagonal == 0, 1.0, diagonal + share * diagonal.mean()))
    return made


def cholesky(matrix: Tensor, threads: int = 1) -> Tensor | None:
    """Lower triangular L with L Lᵀ = `matrix` [n, n], which it overwrites; None when that is not positive definite.

    Left-looking and blocked (Golub and Van Loan, "Matrix Computations", 4.2.6).
    """
    size = len(matrix)
    panel = PANEL if matrix.device.type == "cpu" else size
    with torch_workers(threads) as workers:
        for start in range(0, size, panel):
            here, done = slice(start, min(start + panel, size)), slice(0, start)
            corner = matrix[here, here]
            corner.addmm_(matrix[here, done], matrix[here, done].T, alpha=-1.0)
            lower, info = torch.linalg.cholesky_ex(corner)
            if int(info) != 0:
                return None
            corner.copy_(lower)
            matrix[here, here.stop :] = 0

            def below(first: int, here: slice = here, done: slice = done, lower: Tensor = lower) -> None:
                rows = slice(first, min(first + 2 * panel, size))
                left = matrix[rows, here]
                left.addmm_(matrix[rows, done], matrix[here, done].T, alpha=-1.0)
                left.copy_(torch.linalg.solve_triangular(lower.T, left, upper=True, left=False))

            workers(below, range(here.stop, size, 2 * panel))
    return matrix


def divided(matrix: Tensor, lower: Tensor, threads: int = 1) -> Tensor:
    """X with X L Lᵀ = `matrix` [m, n], L = `lower` [n, n]: by products of blocks, twice as fast as LAPACK's potrs."""
    rows, size = matrix.shape
    panel = PANEL if matrix.device.type == "cpu" else size
    panels = [slice(start, min(start + panel, size)) for start in range(0, size, panel)]
    result = matrix.clone()

    def divide(start: int) -> None:
        x = result[start : start + panel]
        for here in panels:  # Y Lᵀ = matrix
            y = x[:, here].addmm_(x[:, : here.start], lower[here, : here.start].T, alpha=-1.0)
            y.copy_(torch.linalg.solve_triangular(lower[here, here].T, y, upper=True, left=False))
        for here in reversed(panels):  # X L = Y
            y = x[:, here].addmm_(x[:, here.stop :], lower[here.stop :, here], alpha=-1.0)
            y.copy_(torch.linalg.solve_triangular(lower[here, here], y, upper=False, left=False))

    torch_map(divide, range(0, rows, panel), threads)
    return result


def unit_upper(matrix: Tensor, order: Tensor, threads: int = 1) -> Tensor | None:
    """Upper triangular U with ones on its diagonal, U D Uᵀ = `matrix` [n, n] in this order; None if there is none.

    With L Lᵀ the matrix backwards, U is L backwards, every column divided by its diagonal.
    """
    backwards = order.flip(0)
    permuted = torch.empty_like(matrix)

    def take(start: int) -> None:
        rows = backwards[start : start + PANEL]
        torch.index_select(matrix[rows], 1, backwards, out=permuted[start : start + PANEL])

    torch_map(take, range(0, len(matrix), PANEL), threads)
    lower = cholesky(permuted, threads)
    if lower is None:
        return None
    unit = (lower / lower.diagonal()).flip(0, 1)
    return unit if bool(torch.isfinite(unit.sum())) else None

"""Triangular factors of large symmetric matrices, on several threads, with results that do not depend on how many.

LAPACK's threads would round otherwise for another number of them, and one thread alone takes minutes for the largest
matrices of an 8B model. So the blocked algorithms stand here, and LAPACK factors the corners. All of it is float32:
the sums of a Hessian are float64, but with a hundredth of its mean diagonal added it is well enough conditioned.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor

from quantkit.parallel import torch_map

PANEL = 512
"""Columns of a block; part of what the last bits of a result depend on."""


def damped(hessian: Tensor, share: float) -> Tensor:
    """H [cols, cols] with `share` of its mean diagonal added, float32; 1 on the diagonal of dead columns."""
    diagonal = hessian.diagonal()
    made = hessian.to(torch.float32, copy=True)
    made.diagonal().copy_(torch.where(diagonal == 0, 1.0, diagonal + share * diagonal.mean()))
    return made


def cholesky(matrix: Tensor, threads: int = 1) -> Tensor | None:
    """Lower triangular L with L Lᵀ = `matrix` [n, n], which it overwrites; None when that is not positive definite.

    Right-looking and blocked (Golub and Van Loan, "Matrix Computations", 4.2.6).
    """
    size = len(matrix)
    panel = PANEL if matrix.device.type == "cpu" else size

    def blocks(start: int) -> list[slice]:
        return [slice(first, min(first + panel, size)) for first in range(start, size, panel)]

    for here in blocks(0):
        corner, info = torch.linalg.cholesky_ex(matrix[here, here])
        if int(info) != 0:
            return None
        matrix[here, here] = corner
        matrix[here, here.stop :] = 0
        below = blocks(here.stop)

        def divide(rows: slice, here: slice = here, corner: Tensor = corner) -> None:
            left = matrix[rows, here]
            left.copy_(torch.linalg.solve_triangular(corner.T, left, upper=True, left=False))

        def subtract(pair: tuple[slice, slice], here: slice = here) -> None:
            columns, rows = pair
            matrix[rows, columns].addmm_(matrix[rows, here], matrix[columns, here].T, alpha=-1.0)

        torch_map(divide, below, threads)
        torch_map(subtract, combinations_with_replacement(below, 2), threads)
    return matrix


def inverse_of_upper(upper: Tensor, threads: int = 1) -> Tensor:
    """R⁻¹ of an upper triangular R by halves, a third of the work of solving for the unit matrix:

    [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]
    """
    inverse, size = torch.zeros_like(upper), len(upper)
    if size <= PANEL // 4:
        inverse.diagonal().fill_(1)
        return inverse.copy_(torch.linalg.solve_triangular(upper, inverse, upper=True))
    first, second = slice(0, size // 2), slice(size // 2, size)
    inverse[first, first] = inverse_of_upper(upper[first, first], threads)
    inverse[second, second] = inverse_of_upper(upper[second, second], threads)
    corner, last = upper[first, second], inverse[second, second]

    def multiply(start: int) -> None:
        rows = slice(start, min(start + PANEL, first.stop))
        inverse[rows, second] = -(inverse[rows, first] @ corner) @ last

    torch_map(multiply, range(0, first.stop, PANEL), threads)
    return inverse

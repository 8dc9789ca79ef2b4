"""What the stages of `quantkit.methods.gptq` compute.

Weights are float32, H and its factor float64. Rows do not depend on each other and are worked on in fixed chunks, so
the result does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.grid import fitted_grid
from quantkit.methods._error import row_chunks
from quantkit.methods._feedback import BLOCK_COLUMNS, DAMPING, damped, feedback_steps, inverse_factor
from quantkit.methods._refine import refined_steps, refitted_scales
from quantkit.methods._search import rounded_scale, searched_grid
from quantkit.parallel import torch_map
from quantkit.quantized import QuantizedTensor
from quantkit.spec import SCALE_DTYPES, QuantSpec

if TYPE_CHECKING:
    from quantkit.methods.gptq import Gptq


@dataclass(slots=True, eq=False)
class Grid:
    """A solution in the making, columns first, the layout in which columns are contiguous.

    W, steps: float32 [cols, rows]; the quantized weight is scale * steps, steps = code - zero.
    scale, zero: float32 [groups, rows], scale rounded to its stored dtype.
    """

    spec: QuantSpec
    W: Tensor
    scale: Tensor
    zero: Tensor
    steps: Tensor

    def wide(self, per_group: Tensor) -> Tensor:
        """A value per group as one per column: [cols, rows]."""
        return per_group.repeat_interleave(len(self.W) // len(per_group), dim=0)

    def limits(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest step of every group, [groups, rows]."""
        return -self.zero, self.spec.levels - 1 - self.zero


def solved(
    stages: Gptq, weight: np.ndarray, spec: QuantSpec, hessian: Tensor, threads: int
) -> tuple[QuantizedTensor | None, str | None]:
    """The solution, or None and the reason why there is none.

    Args:
        stages: which of the stages to run.
        weight: finite float32 [rows, cols].
        spec: the grid, whose group size divides cols.
        hessian: finite float64 [cols, cols], not all zero.
        threads: how many to use.
    """
    cols = len(hessian)
    order = torch.arange(cols, device=hessian.device)
    if stages.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    for share in DAMPING:
        H = damped(hessian, share)
        factor = inverse_factor(H[order][:, order])
        if factor is None:
            continue
        try:
            return _all_rows(stages, weight, spec, H.float(), factor=factor, order=order, threads=threads), None
        except (NonFiniteValues, ValueOutOfRange):
            return None, f"error feedback drove weights beyond {spec.scale_dtype} scales"
    return None, f"the Hessian cannot be factored, even with damping {DAMPING[-1]:g}"


def _all_rows(
    stages: Gptq, weight: np.ndarray, spec: QuantSpec, H: Tensor, *, factor: Tensor, order: Tensor, threads: int
) -> QuantizedTensor:
    rows, cols = weight.shape
    codes = np.empty((rows, cols), np.uint8)
    scale = np.empty((rows, spec.groups(cols)), SCALE_DTYPES[spec.scale_dtype])
    zero = np.empty(scale.shape, np.uint8)

    chunks = row_chunks(rows, H.device)

    def solve(start: int) -> None:
        part = slice(start, start + chunks.step)
        grid = _rows(stages, torch.from_numpy(weight[part]).to(H.device), spec, H, factor=factor, order=order)
        codes[part] = (grid.steps + grid.wide(grid.zero)).T.to("cpu", torch.uint8).numpy()
        scale[part] = grid.scale.T.cpu().numpy().astype(scale.dtype)
        zero[part] = grid.zero.T.to("cpu", torch.uint8).numpy()

    torch_map(solve, chunks, threads)
    return QuantizedTensor(spec, codes, scale, zero)


def _rows(stages: Gptq, weight: Tensor, spec: QuantSpec, H: Tensor, *, factor: Tensor, order: Tensor) -> Grid:
    if stages.search:
        scale, zero = (x.T.contiguous() for x in searched_grid(weight, H.diagonal(), spec))
    else:
        scale, zero = _covering(weight.T, spec)
    grid = Grid(spec, weight.T.contiguous(), scale, zero, torch.empty_like(weight.T))
    if stages.search or stages.act_order:
        groups = (order // (len(order) // len(scale))).tolist()
        grid.steps[order] = feedback_steps(grid.W[order], factor, scale, grid.limits(), groups)
    else:
        grid.steps = _textbook_steps(grid, factor)
    if stages.rounds:
        _descend(grid, H, stages.rounds)
    return grid


def _textbook_steps(grid: Grid, factor: Tensor) -> Tensor:
    """Error feedback in column order; a group's grid covers its weights as updated when it is reached."""
    width = len(grid.W) // len(grid.scale)
    lowest, highest = grid.limits()

    def regrid(start: int, updated: Tensor) -> None:
        if start % width == 0:
            group, columns = start // width, slice(start, start + width)
            one = replace(grid.spec, group_size=width)
            scale, zero = _covering(updated[columns], one)
            grid.scale[group], grid.zero[group] = scale[0], zero[0]
            lowest[group], highest[group] = -zero[0], grid.spec.levels - 1 - zero[0]

    batch = BLOCK_COLUMNS if width % BLOCK_COLUMNS == 0 else width  # a group must begin with a batch
    groups = [column // width for column in range(len(grid.W))]
    return feedback_steps(grid.W, factor, grid.scale, (lowest, highest), groups, width=batch, before_block=regrid)


def _descend(grid: Grid, H: Tensor, rounds: int) -> None:
    """A sweep over the codes; then rounds of a refit of the scales and another sweep, kept where a row gains."""
    limits, HW = grid.limits(), H @ grid.W
    grid.steps, error = _swept(grid, H, grid.scale, limits)
    for _ in range(rounds):
        scale = refitted_scales(HW, H, grid.steps, grid.scale, lambda x: rounded_scale(x, grid.spec))
        steps, new_error = _swept(grid, H, scale, limits)
        better = new_error < error
        grid.steps = torch.where(better, steps, grid.steps)
        grid.scale = torch.where(better, scale, grid.scale)
        error = torch.where(better, new_error, error)


def _swept(grid: Grid, H: Tensor, scale: Tensor, limits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Steps after a sweep that begins with the grid's steps on `scale`, and every row's error, float32 [rows]."""
    wide = grid.wide(scale)
    R = H @ (wide * grid.steps).sub_(grid.W)
    steps = refined_steps(R, H, grid.steps, scale, limits)
    return steps, R.mul_((wide * steps).sub_(grid.W)).sum(0)


def _covering(updated: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover the range of every group of `updated` [cols, rows]: float32 [groups, rows]."""
    cols, rows = updated.shape
    fitted = fitted_grid(updated.T.reshape(rows, spec.groups(cols), -1).cpu().numpy(), spec)
    scale, zero = (torch.from_numpy(x.astype(np.float32).T.copy()).to(updated.device) for x in fitted)
    return scale, zero

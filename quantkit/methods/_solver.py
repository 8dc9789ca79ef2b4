"""What the stages of `quantkit.methods.gptq` compute.

Everything is float32 but the Hessian that comes in. Rows do not depend on each other and are worked on in fixed
chunks, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.factorization import damped
from quantkit.grid import fitted_grid
from quantkit.methods._error import row_chunks
from quantkit.methods._feedback import BLOCK_COLUMNS, DAMPING, feedback_steps, inverse_factor
from quantkit.methods._refine import refined_steps, refitted_scales
from quantkit.methods._row_feedback import pass_on, row_blocks, solving_order
from quantkit.methods._search import rounded_scale, searched_grid
from quantkit.parallel import torch_map
from quantkit.quantized import QuantizedTensor
from quantkit.spec import SCALE_DTYPES, QuantSpec

if TYPE_CHECKING:
    from quantkit.calibration import LayerStatistics
    from quantkit.methods.gptq import Gptq

COUPLED_ROWS = 128
"""Rows of a block worked on together when blocks wait for each other."""


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

    def lost(self, steps: Tensor, scale: Tensor) -> Tensor:
        """Q - W [cols, rows] for these steps and scales."""
        return (self.wide(scale) * steps).sub_(self.W)

    def limits(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest step of every group, [groups, rows]."""
        return -self.zero, self.spec.levels - 1 - self.zero


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What all rows of a matrix share: H [cols, cols], damped, the order of its columns, and U in that order."""

    stages: Gptq
    spec: QuantSpec
    H: Tensor
    order: Tensor
    factor: Tensor


def solved(
    stages: Gptq, weight: np.ndarray, spec: QuantSpec, statistics: LayerStatistics, threads: int
) -> tuple[QuantizedTensor | None, str | None]:
    """The solution, or None and the reason why there is none.

    Args:
        stages: which of the stages to run.
        weight: finite float32 [rows, cols].
        spec: the grid, whose group size divides cols.
        statistics: finite, not all zero.
        threads: how many to use.
    """
    hessian = statistics.hessian
    order = torch.arange(len(hessian), device=hessian.device)
    if stages.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    for share in DAMPING:
        H = damped(hessian, share)
        factor = inverse_factor(H, order, threads)
        if factor is None:
            continue
        try:
            return _all_rows(Problem(stages, spec, H, order, factor), weight, statistics.sensitivity, threads), None
        except (NonFiniteValues, ValueOutOfRange):
            return None, f"error feedback drove weights beyond {spec.scale_dtype} scales"
    return None, f"the Hessian cannot be factored, even with damping {DAMPING[-1]:g}"


def _all_rows(problem: Problem, weight: np.ndarray, sensitivity: Tensor | None, threads: int) -> QuantizedTensor:
    """All rows at once, or, with a sensitivity of their outputs, block after block with feedback between them."""
    spec, device = problem.spec, problem.H.device
    rows, cols = weight.shape
    codes = np.empty((rows, cols), np.uint8)
    scale = np.empty((rows, spec.groups(cols)), SCALE_DTYPES[spec.scale_dtype])
    zero = np.empty(scale.shape, np.uint8)

    coupled = solving_order(sensitivity, threads) if sensitivity is not None else None
    order, factor = coupled or (torch.arange(rows, device=device), None)
    blocks = [slice(0, rows)] if factor is None else row_blocks(rows, cols)
    step = row_chunks(rows, device).step if factor is None or device.type != "cpu" else COUPLED_ROWS
    targets = torch.from_numpy(weight).to(device)[order]

    def solve(part: slice) -> Tensor | None:
        grid = _rows(problem, targets[part])
        where = order[part].cpu().numpy()
        codes[where] = (grid.steps + grid.wide(grid.zero)).T.to("cpu", torch.uint8).numpy()
        scale[where] = grid.scale.T.cpu().numpy().astype(scale.dtype)
        zero[where] = grid.zero.T.to("cpu", torch.uint8).numpy()
        return None if factor is None else grid.lost(grid.steps, grid.scale).T

    for block in blocks:
        starts = range(block.start, block.stop, step)
        lost = torch_map(solve, [slice(start, min(start + step, block.stop)) for start in starts], threads)
        if factor is not None:
            pass_on(targets, torch.cat([part for part in lost if part is not None]), factor, block)
    return QuantizedTensor(spec, codes, scale, zero)


def _rows(problem: Problem, weight: Tensor) -> Grid:
    stages, spec, H, order = problem.stages, problem.spec, problem.H, problem.order
    if stages.search:
        scale, zero = (x.T.contiguous() for x in searched_grid(weight, H.diagonal(), spec))
    else:
        scale, zero = _covering(weight.T, spec)
    grid = Grid(spec, weight.T.contiguous(), scale, zero, torch.empty_like(weight.T))
    if stages.search or stages.act_order:
        groups = (order // (len(order) // len(scale))).tolist()
        grid.steps[order] = feedback_steps(grid.W[order], problem.factor, scale, grid.limits(), groups)
    else:
        grid.steps = _textbook_steps(grid, problem.factor)
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
    """Rounds of a refit of the scales and a sweep over the codes, kept where a row gains."""
    limits = grid.limits()
    R = H @ grid.lost(grid.steps, grid.scale)
    error = grid.lost(grid.steps, grid.scale).mul_(R).sum(0)
    for _ in range(rounds):
        scale = refitted_scales(R, H, grid.steps, grid.scale, lambda x: rounded_scale(x, grid.spec))
        new_R = H @ grid.lost(grid.steps, scale)
        steps = refined_steps(new_R, H, grid.steps, scale, limits)
        new_error = grid.lost(steps, scale).mul_(new_R).sum(0)
        better = new_error < error
        grid.steps = torch.where(better, steps, grid.steps)
        grid.scale = torch.where(better, scale, grid.scale)
        R, error = torch.where(better, new_R, R), torch.where(better, new_error, error)


def _covering(updated: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover the range of every group of `updated` [cols, rows]: float32 [groups, rows]."""
    cols, rows = updated.shape
    fitted = fitted_grid(updated.T.reshape(rows, spec.groups(cols), -1).cpu().numpy(), spec)
    scale, zero = (torch.from_numpy(x.astype(np.float32).T.copy()).to(updated.device) for x in fitted)
    return scale, zero

"""What the stages of `quantkit.methods.gptq` compute.

Everything is float32. Rows do not depend on each other and are worked on in fixed chunks, so the result does not depend
on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.solver.cholesky import damped, unit_upper
from quantkit.solver.feedback import feedback_steps
from quantkit.solver.output_error import row_chunks
from quantkit.solver.refine import BLOCK_COLUMNS, descend
from quantkit.solver.row_feedback import aimed, row_blocks, solving_order
from quantkit.solver.search import rounded_scale, searched_grid, step_limits
from quantkit.solver.stages import Stages
from quantkit.tensors.quant_spec import SCALE_DTYPES, QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import fitted_grid
from quantkit.threads import torch_workers

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

MORE_DAMPING = (0.03, 0.1, 0.3, 1.0)
"""Tried in turn while H cannot be factored."""
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

    def values(self) -> Tensor:
        """Q, float32 [cols, rows]."""
        return self._grouped(self.steps).mul(self.scale[:, None]).view_as(self.W)

    def codes(self) -> Tensor:
        """Integral float32 [cols, rows]."""
        return self._grouped(self.steps).add(self.zero[:, None]).view_as(self.W)

    def limits(self) -> list[tuple[Tensor, Tensor]]:
        """Of the steps of every group."""
        return [step_limits(zero, self.spec) for zero in self.zero.unbind()]

    def _grouped(self, per_column: Tensor) -> Tensor:
        return per_column.view(len(self.scale), -1, per_column.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What all rows of a matrix share: H [cols, cols], damped, the order of its columns, and its U in that order.

    turn: held in loops over columns. They hardly ever let go of the interpreter; two of them at once would wait for
        each other at every operation, and take several times as long as one after the other.
    """

    stages: Stages
    spec: QuantSpec
    H: Tensor
    order: Tensor
    factor: Tensor
    turn: Lock


def solved(
    stages: Stages, weight: np.ndarray, spec: QuantSpec, statistics: LayerStatistics, threads: int
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
    for share in (stages.damping, *(share for share in MORE_DAMPING if share > stages.damping)):
        H = damped(hessian, share)
        factor = unit_upper(H, order, threads)
        if factor is None:
            continue
        try:
            problem = Problem(stages, spec, H, order, factor, Lock())
            return _all_rows(problem, weight, statistics.sensitivity, threads), None
        except (NonFiniteValues, ValueOutOfRange):
            return None, f"error feedback drove weights beyond {spec.scale_dtype} scales"
    return None, f"the Hessian cannot be factored, even with damping {share:g}"


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
    lost = torch.empty_like(targets)

    def solve(part: slice, aims: Tensor) -> None:
        grid = _rows(problem, aims)
        where = order[part].cpu().numpy()
        codes[where] = grid.codes().T.to("cpu", torch.uint8).numpy()
        scale[where] = grid.scale.T.cpu().numpy().astype(scale.dtype)
        zero[where] = grid.zero.T.to("cpu", torch.uint8).numpy()
        if factor is not None:
            torch.sub(grid.values().T, targets[part], out=lost[part])

    with torch_workers(threads) as workers:
        for block in blocks:
            aims = targets[block] if factor is None else aimed(targets, lost, factor, block, workers)
            starts = range(block.start, block.stop, step)
            parts = [slice(start, min(start + step, block.stop)) for start in starts]
            workers(lambda pair: solve(*pair), zip(parts, torch.split(aims, step), strict=True))
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
        grid.steps[order] = feedback_steps(
            grid.W[order], problem.factor, scale, grid.limits(), groups, turn=problem.turn
        )
    else:
        grid.steps = _textbook_steps(grid, problem)
    if stages.rounds:
        _descend(grid, problem)
    return grid


def _textbook_steps(grid: Grid, problem: Problem) -> Tensor:
    """Error feedback in column order; a group's grid covers its weights as updated when it is reached.

    What columns before the group pass on to each column of it stands in the targets. The paper's updated weights, which
    the grid covers, are what the group would then aim at if nothing more were lost: Uᵀ (updated - W) = targets - W.
    """
    width, factor = len(grid.W) // len(grid.scale), problem.factor
    limits = grid.limits()

    def regrid(start: int, targets: Tensor) -> None:
        if start % width == 0:
            group, columns = start // width, slice(start, start + width)
            one = replace(grid.spec, group_size=width)
            W, U = grid.W[columns], factor[columns, columns]
            moved = torch.linalg.solve_triangular(U.T, targets[columns] - W, upper=False, unitriangular=True)
            scale, zero = _covering(W + moved, one)
            grid.scale[group], grid.zero[group] = scale[0], zero[0]
            limits[group] = step_limits(zero[0], grid.spec)

    batch = BLOCK_COLUMNS if width % BLOCK_COLUMNS == 0 else width  # a group must begin with a batch
    groups = [column // width for column in range(len(grid.W))]
    return feedback_steps(
        grid.W.clone(), factor, grid.scale, limits, groups, turn=problem.turn, width=batch, before_block=regrid
    )


def _descend(grid: Grid, problem: Problem) -> None:
    """Rounds over all groups, each a refit of the scale and a sweep over the codes."""
    H, rounds = problem.H, problem.stages.rounds
    R = H @ grid.values().sub_(grid.W)
    rounded = partial(rounded_scale, spec=grid.spec)
    for remaining in reversed(range(rounds)):
        descend(R, H, grid.steps, grid.scale, grid.limits(), rounded=rounded, turn=problem.turn, again=remaining > 0)


def _covering(updated: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover the range of every group of `updated` [cols, rows]: float32 [groups, rows]."""
    cols, rows = updated.shape
    fitted = fitted_grid(updated.T.reshape(rows, spec.groups(cols), -1).cpu().numpy(), spec)
    scale, zero = (torch.from_numpy(x.astype(np.float32).T.copy()).to(updated.device) for x in fitted)
    return scale, zero

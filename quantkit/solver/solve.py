"""What the stages of `quantkit.methods.gptq` compute.

Everything is float32. Rows do not depend on each other and are worked on in fixed chunks, so the result does not depend
on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.protocols import Layer
from quantkit.solver.cholesky import damped, unit_upper
from quantkit.solver.descent.groups import descend
from quantkit.solver.feedback import BLOCK_COLUMNS, feedback_steps
from quantkit.solver.output_error import row_chunks
from quantkit.solver.row_feedback import aimed, row_blocks, solving_order
from quantkit.solver.search import searched_fit, stored_arrays
from quantkit.solver.stages import Stages
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Fit, Levels, Scheme
from quantkit.threads import torch_workers

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

MORE_DAMPING = (0.03, 0.1, 0.3, 1.0)
"""Tried in turn while H cannot be factored."""
COUPLED_ROWS = 128
"""Rows of a block worked on together when blocks wait for each other."""


@dataclass(slots=True, eq=False)
class Solution:
    """A solution in the making, columns first, the layout in which columns are contiguous.

    W, steps: float32 [cols, rows]; the quantized weight is scale * steps + offset, steps are levels of the scheme.
    fit: scale and offset of every group, [groups, rows].
    """

    scheme: Scheme
    W: Tensor
    fit: Fit
    steps: Tensor

    def targets(self) -> Tensor:
        """W less the offsets: what scale * steps aims at."""
        offset = self.fit.offset
        return self.W if offset is None else self._grouped(self.W).sub(offset[:, None]).view_as(self.W)

    def values(self) -> Tensor:
        """Q, float32 [cols, rows]."""
        products = self._grouped(self.steps).mul(self.fit.scale[:, None])
        if self.fit.offset is not None:
            products.add_(self.fit.offset[:, None])
        return products.view_as(self.W)

    def codes(self) -> Tensor:
        """Integral float32 [cols, rows]."""
        return self.scheme.codes(self._grouped(self.steps), self.fit.part((slice(None), None))).view_as(self.W)

    def levels(self) -> list[Levels]:
        """Of every group."""
        return [self.scheme.levels_of(self.fit.part(group)) for group in range(len(self.fit.scale))]

    def _grouped(self, per_column: Tensor) -> Tensor:
        return per_column.view(len(self.fit.scale), -1, per_column.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What all rows of a matrix share: H [cols, cols], damped, the order of its columns, and its U in that order.

    turn: held in loops over columns. They hardly ever let go of the interpreter; two of them at once would wait for
        each other at every operation, and take several times as long as one after the other.
    """

    stages: Stages
    scheme: Scheme
    H: Tensor
    order: Tensor
    factor: Tensor
    turn: Lock


def solved(
    stages: Stages, layer: Layer, statistics: LayerStatistics, threads: int
) -> tuple[QuantizedTensor | None, str | None]:
    """The solution, or None and the reason why there is none.

    Args:
        stages: which of the stages to run.
        layer: what to quantize; its weight is finite and its groups divide the columns.
        statistics: of its inputs, finite, not all zero.
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
            problem = Problem(stages, layer.scheme, H, order, factor, Lock())
            return _all_rows(problem, layer.weight, layer.sensitivity, threads), None
        except (NonFiniteValues, ValueOutOfRange):
            return None, f"error feedback drove weights beyond {layer.scheme.scale_dtype} scales"
    return None, f"the Hessian cannot be factored, even with damping {share:g}"


def _all_rows(problem: Problem, weight: np.ndarray, sensitivity: Tensor | None, threads: int) -> QuantizedTensor:
    """All rows at once, or, with a sensitivity of their outputs, block after block with feedback between them."""
    scheme, device = problem.scheme, problem.H.device
    rows, cols = weight.shape
    codes = np.empty((rows, cols), np.uint8)
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in scheme.parameters(rows, cols).items()}

    coupled = solving_order(sensitivity, threads) if sensitivity is not None else None
    order, factor = coupled or (torch.arange(rows, device=device), None)
    blocks = [slice(0, rows)] if factor is None else row_blocks(rows, cols)
    step = row_chunks(rows, device).step if factor is None or device.type != "cpu" else COUPLED_ROWS
    targets = torch.from_numpy(weight).to(device)[order]
    lost = torch.empty_like(targets)

    def solve(part: slice, aims: Tensor) -> None:
        found = _rows(problem, aims)
        where = order[part].cpu().numpy()
        codes[where] = found.codes().T.to("cpu", torch.uint8).numpy()
        for name, values in stored_arrays(scheme, _transposed(found.fit), cols).items():
            arrays[name][where] = values
        if factor is not None:
            torch.sub(found.values().T, targets[part], out=lost[part])

    with torch_workers(threads) as workers:
        for block in blocks:
            aims = targets[block] if factor is None else aimed(targets, lost, factor, block, workers)
            starts = range(block.start, block.stop, step)
            parts = [slice(start, min(start + step, block.stop)) for start in starts]
            workers(lambda pair: solve(*pair), zip(parts, torch.split(aims, step), strict=True))
    return QuantizedTensor(scheme, codes, arrays)


def _rows(problem: Problem, weight: Tensor) -> Solution:
    stages, scheme, order = problem.stages, problem.scheme, problem.order
    if stages.search:
        fit = _transposed(searched_fit(weight, problem.H.diagonal(), scheme))
    else:
        fit = _covering(weight.T, scheme)
    found = Solution(scheme, weight.T.contiguous(), fit, torch.empty_like(weight.T))
    if stages.search or stages.act_order:
        groups = (order // (len(order) // len(fit.scale))).tolist()
        found.steps[order] = feedback_steps(
            found.targets()[order], problem.factor, fit.scale, found.levels(), groups, turn=problem.turn
        )
    else:
        found.steps = _textbook_steps(found, problem)
    if stages.rounds:
        _descend(found, problem)
    return found


def _textbook_steps(found: Solution, problem: Problem) -> Tensor:
    """Error feedback in column order; a group's parameters cover its weights as updated when it is reached.

    What columns before the group pass on to each column of it stands in the targets. The paper's updated weights, which
    the parameters cover, are what the group would then aim at if nothing more were lost:
    Uᵀ (updated - W) = targets - W.
    """
    fit, factor = found.fit, problem.factor
    width = len(found.W) // len(fit.scale)
    aims, levels = found.targets().clone(), found.levels()

    def refit(start: int, targets: Tensor) -> None:
        if start % width == 0:
            group, columns = start // width, slice(start, start + width)
            W, U = aims[columns], factor[columns, columns]
            moved = torch.linalg.solve_triangular(U.T, targets[columns] - W, upper=False, unitriangular=True)
            offset = 0.0 if fit.offset is None else fit.offset[group].clone()
            new = _covering(W + moved + offset, found.scheme.with_settings(group_size=width))
            for kept, covering in ((fit.scale, new.scale), (fit.first, new.first), (fit.offset, new.offset)):
                if kept is not None and covering is not None:
                    kept[group] = covering[0]
            if fit.offset is not None:
                targets[columns] += offset - fit.offset[group]
                aims[columns] += offset - fit.offset[group]
            levels[group] = found.scheme.levels_of(fit.part(group))

    batch = BLOCK_COLUMNS if width % BLOCK_COLUMNS == 0 else width  # a group must begin with a batch
    groups = [column // width for column in range(len(found.W))]
    return feedback_steps(aims, factor, fit.scale, levels, groups, turn=problem.turn, width=batch, before_block=refit)


def _descend(found: Solution, problem: Problem) -> None:
    """Rounds over all groups, each a refit of scale and offset and a sweep over the codes."""
    H, rounds = problem.H, problem.stages.rounds
    R = H @ found.values().sub_(found.W)
    for remaining in reversed(range(rounds)):
        descend(R, H, found.steps, found.scheme, found.fit, turn=problem.turn, again=remaining > 0)


def _covering(updated: Tensor, scheme: Scheme) -> Fit:
    """Parameters that cover the range of every group of `updated` [cols, rows]: a fit [groups, rows]."""
    cols, rows = updated.shape
    arrays = scheme.covering(updated.T.reshape(rows, scheme.groups(cols), -1).cpu().numpy())
    return _transposed(scheme.fit(arrays), updated.device)


def _transposed(fit: Fit, device: torch.device | None = None) -> Fit:
    """[rows, groups] to [groups, rows] and back, each contiguous."""

    def turned(x: Tensor) -> Tensor:
        return x.T.contiguous().to(device or x.device)

    shared = {name: turned(x) for name, x in fit.shared.items()} if fit.shared is not None else None
    first, offset = (None if x is None else turned(x) for x in (fit.first, fit.offset))
    return Fit(turned(fit.scale), first, offset, shared)

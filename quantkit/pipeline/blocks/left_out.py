"""What layers that read the same inputs make of sequences that were not there: one fold left out at a time.

Some rows of every layer stand for all of them. Without a fold they are moved to make up for earlier losses and, where
their codes are to be judged, quantized; then they are held against the inputs of that fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.activations import Stage
from quantkit.calibration.statistics import LayerStatistics
from quantkit.protocols import Layer, Method
from quantkit.solver.cholesky import divided
from quantkit.solver.error_compensation import of_outputs, regression_factor, strength
from quantkit.solver.output_error import changes_of, output_energies
from quantkit.solver.row_feedback import relative
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import Scheme

ROWS = 128
"""Rows that stand for a layer, evenly spread over it."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A layer of a stage: its float32 weight [rows, cols] on the stage's device, scheme, method and sensitivity."""

    weight: Tensor
    scheme: Scheme
    method: Method
    sensitivity: Tensor | None = None

    @property
    def rows(self) -> slice:
        """Those that stand for the layer."""
        return slice(None, None, -(-len(self.weight) // ROWS))


@dataclass(frozen=True, slots=True)
class Judgement:
    """Squared output error on what was left out: of codes and of round-to-nearest, up to the same constant.

    error: of the codes against what they aim at, as a share of the outputs' energy, on the rows that stand for a layer.
    error_of_rounding: of round-to-nearest, likewise.
    """

    lost: float
    lost_by_rounding: float
    error: float
    error_of_rounding: float


class LeftOut:
    """The folds of one stage, each left out in turn.

    Args:
        stage: the layers' inputs.
        everything: statistics of all folds together.
        tasks: the layers by name.
        threads: how many to use; the result does not depend on it.
    """

    def __init__(self, stage: Stage, everything: LayerStatistics, tasks: Mapping[str, Task], threads: int) -> None:
        self._stage = stage
        self._everything = everything
        self._tasks = tasks
        self._threads = threads

    @cached_property
    def strengths(self) -> dict[str, float | None]:
        """How far each layer is best moved, by all folds together; None where the original is not followed."""
        if self._stage.drift is None:
            return dict.fromkeys(self._tasks)
        hessians = [fold.hessian for fold in self._stage.folds]
        return {
            name: strength(self._moves[name], self._lacking(task), hessians, self._threads)
            for name, task in self._tasks.items()
        }

    def judged(self, fold: int, method: Method, names: Sequence[str]) -> list[Judgement]:
        """Codes that a method chooses without a fold, on that fold."""
        layers = [self._layer(name, fold) for name in names]
        rest = self._everything.without(self._stage.folds[fold])
        made = method.quantize(layers, rest, threads=self._threads)
        return [
            self._judgement(fold, self._tasks[name], layer, tensor)
            for name, layer, (tensor, _) in zip(names, layers, made, strict=True)
        ]

    @cached_property
    def _moves(self) -> dict[str, list[Tensor]]:
        """By layer, how far its rows are moved without each of the folds: not at all where H cannot be factored."""
        drift = self._stage.drift
        found: dict[str, list[Tensor]] = {name: [] for name in self._tasks}
        if drift is None:
            return found
        everything = sum(drift.folds[1:], start=drift.folds[0])
        for fold, own in zip(self._stage.folds, drift.folds, strict=True):
            factor = regression_factor(self._everything.without(fold).hessian, self._threads)
            for name, task in self._tasks.items():
                missing = of_outputs(drift, everything - own, task.weight, task.rows)
                found[name].append(missing.zero_() if factor is None else divided(missing, factor, self._threads))
        return found

    def _lacking(self, task: Task) -> list[Tensor]:
        """M of the layer's rows on every fold."""
        drift = self._stage.drift
        return [] if drift is None else [of_outputs(drift, own, task.weight, task.rows) for own in drift.folds]

    def _layer(self, name: str, fold: int) -> Layer:
        task, alpha = self._tasks[name], self.strengths[name]
        aim = task.weight[task.rows]
        if alpha:
            aim = aim + alpha * self._moves[name][fold]
        sensitivity = None if task.sensitivity is None else task.sensitivity[task.rows, task.rows].contiguous()
        return Layer(name, aim.cpu().numpy(), task.scheme, sensitivity)

    def _judgement(self, fold: int, task: Task, layer: Layer, tensor: QuantizedTensor) -> Judgement:
        W, H = task.weight[task.rows].contiguous(), self._stage.folds[fold].hessian
        G = relative(layer.sensitivity) if layer.sensitivity is not None and task.method.weighs_outputs else None
        drift = self._stage.drift
        M = None if drift is None else of_outputs(drift, drift.folds[fold], task.weight, task.rows)
        rounded = round_to_nearest(W.cpu().numpy(), task.scheme)
        changes = changes_of(W, (tensor, rounded), self._threads)
        lost, lost_by_rounding = output_energies(changes, H, self._threads, weights=G, drift=M)
        error, error_of_rounding = self._error(W, layer.weight, tensor, H), self._share(changes[1], W, H)
        return Judgement(lost, lost_by_rounding, error, error_of_rounding)

    def error(self, fold: int, name: str, aim: np.ndarray, tensor: QuantizedTensor) -> float:
        """Of the codes of a whole layer against what they aim at, on a fold, as `Judgement.error`."""
        task = self._tasks[name]
        hessian = self._stage.folds[fold].hessian
        return self._error(task.weight[task.rows], aim[task.rows], tensor.part(task.rows), hessian)

    def _error(self, W: Tensor, aim: np.ndarray, tensor: QuantizedTensor, hessian: Tensor) -> float:
        aimed = torch.from_numpy(np.ascontiguousarray(aim)).to(W.device)
        (off,) = changes_of(aimed, (tensor,), self._threads)
        return self._share(off, W, hessian)

    def _share(self, off: Tensor, W: Tensor, hessian: Tensor) -> float:
        """The energy of what outputs are off, as a share of that of the outputs."""
        energy, power = output_energies([off, W.contiguous()], hessian, self._threads)
        return max(energy, 0.0) / power if power > 0 else 0.0

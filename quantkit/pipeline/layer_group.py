"""Quantizes linear layers that read the same inputs.

For each: aim at the weights that make up for earlier losses (`quantkit.solver.error_compensation`), let the method
choose codes for them, and keep the result only if it beats round-to-nearest on sequences that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from quantkit.calibration.activations import Stage
from quantkit.calibration.statistics import LayerStatistics
from quantkit.protocols import Layer, Method, TensorReport
from quantkit.solver.error_compensation import of_outputs, regression, strength
from quantkit.solver.output_error import changes_of, output_energies
from quantkit.solver.row_feedback import relative
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What a layer aims at: the weights to quantize, Mₕ, and the strength of the correction.

    held_drift, strength: None where the original is not followed.
    """

    target: Tensor
    held_drift: Tensor | None
    strength: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A layer of a stage: its float32 weight [rows, cols] on the stage's device, scheme, method and sensitivity."""

    weight: Tensor
    scheme: Scheme
    method: Method
    sensitivity: Tensor | None = None


class StageSolver:
    """What the layers of a stage share is computed once, when the first of them needs it."""

    def __init__(self, stage: Stage, threads: int) -> None:
        self._stage = stage
        self._threads = threads

    def quantized(self, tasks: Mapping[str, Task]) -> dict[str, tuple[QuantizedTensor, TensorReport]]:
        """Codes for the layers of the stage, by name; those of one method together. Raises what the method raises."""
        results: dict[str, tuple[QuantizedTensor, TensorReport]] = {}
        for method in dict.fromkeys(task.method for task in tasks.values()):
            group = {name: task for name, task in tasks.items() if task.method == method}
            results |= self._calibrated(method, group) if method.needs_calibration else self._rounded(method, group)
        return {name: results[name] for name in tasks}

    def _rounded(self, method: Method, tasks: Mapping[str, Task]) -> dict[str, tuple[QuantizedTensor, TensorReport]]:
        layers = [Layer(name, task.weight.cpu().numpy(), task.scheme) for name, task in tasks.items()]
        return dict(zip(tasks, method.quantize(layers, None, threads=self._threads), strict=True))

    def _calibrated(self, method: Method, tasks: Mapping[str, Task]) -> dict[str, tuple[QuantizedTensor, TensorReport]]:
        aims = {name: self._aim(task.weight) for name, task in tasks.items()}
        layers = [
            Layer(name, aims[name].target.cpu().numpy(), task.scheme, task.sensitivity) for name, task in tasks.items()
        ]
        made = method.quantize(layers, self._everything, threads=self._threads)
        return {
            name: self._kept(task, aims[name], tensor, replace(report, strength=aims[name].strength))
            for (name, task), (tensor, report) in zip(tasks.items(), made, strict=True)
        }

    def _kept(
        self, task: Task, aim: Aim, tensor: QuantizedTensor, report: TensorReport
    ) -> tuple[QuantizedTensor, TensorReport]:
        """The method's result, or round-to-nearest where that serves the held-out sequences better."""
        if report.fallback is not None or not self._stage.held_out.tokens:
            return tensor, report
        rounded = round_to_nearest(task.weight.cpu().numpy(), task.scheme)
        sensitivity = task.sensitivity if task.method.weighs_outputs else None
        G = relative(sensitivity) if sensitivity is not None else None
        lost, lost_by_rounding = self._held_out_losses(task.weight, (tensor, rounded), aim.held_drift, G)
        if lost <= lost_by_rounding:
            return tensor, report
        return rounded, replace(report, fallback="it lost to round-to-nearest on held-out sequences")

    def _aim(self, W: Tensor) -> Aim:
        """Where the original is followed, W moved to make up for what the layers before lost."""
        drift = self._stage.drift
        if drift is None:
            return Aim(W, None, None)
        held_drift = of_outputs(drift, drift.held_out, W, self._threads)
        if self._regression is None:
            return Aim(W, held_drift, 0.0)
        delta = of_outputs(drift, self._regression, W, self._threads)
        alpha = strength(delta, held_drift, self._stage.held_out.hessian, self._threads)
        return Aim(W + alpha * delta, held_drift, alpha)

    def _held_out_losses(
        self, W: Tensor, candidates: Sequence[QuantizedTensor], drift: Tensor | None, G: Tensor | None
    ) -> list[float]:
        """Squared output error on held-out tokens, weighted by G, of every candidate, up to a constant.

        ||X̂ changeᵀ - D||² = tr(change Hₕ changeᵀ) - 2 tr(change Mₕᵀ) + ||D||²
        """
        changes = changes_of(W, candidates, self._threads)
        return output_energies(changes, self._stage.held_out.hessian, self._threads, weights=G, drift=drift)

    @cached_property
    def _everything(self) -> LayerStatistics:
        fitted, held_out = self._stage.fitted, self._stage.held_out
        return LayerStatistics(fitted.hessian + held_out.hessian, fitted.tokens + held_out.tokens)

    @cached_property
    def _regression(self) -> Tensor | None:
        drift = self._stage.drift
        return None if drift is None else regression(drift.fitted, self._stage.fitted.hessian, self._threads)

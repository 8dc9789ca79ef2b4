"""Quantizes linear layers that read the same inputs.

For each: aim at the weights that make up for earlier losses (`quantkit.solver.error_compensation`), let the method
choose codes for them, and keep the result only if it beats round-to-nearest on sequences that neither has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from quantkit.calibration.activations import Stage
from quantkit.calibration.statistics import LayerStatistics
from quantkit.protocols import Method, TensorReport
from quantkit.solver.error_compensation import of_outputs, regression, strength
from quantkit.solver.output_error import changes_of, output_energies
from quantkit.solver.row_feedback import relative
from quantkit.tensors.quant_spec import QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest


class StageSolver:
    """What the layers of a stage share is computed once, when the first of them needs it."""

    def __init__(self, stage: Stage, threads: int) -> None:
        self._stage = stage
        self._threads = threads

    def quantized(
        self, W: Tensor, spec: QuantSpec, method: Method, sensitivity: Tensor | None = None
    ) -> tuple[QuantizedTensor, TensorReport]:
        """Codes for the float32 weight W [rows, cols], its outputs that sensitive; raises what the method raises."""
        weight = W.cpu().numpy()
        if not method.needs_calibration:
            return method.quantize(weight, spec, None, threads=self._threads)
        target, held_drift, alpha = self._target(W)
        statistics = replace(self._everything, sensitivity=sensitivity)
        tensor, report = method.quantize(target.cpu().numpy(), spec, statistics, threads=self._threads)
        report = replace(report, strength=alpha)
        if report.fallback is not None or not self._stage.held_out.tokens:
            return tensor, report
        rounded = round_to_nearest(weight, spec)
        G = relative(sensitivity) if method.weighs_outputs and sensitivity is not None else None
        lost, lost_by_rounding = self._held_out_losses(W, (tensor, rounded), held_drift, G)
        if lost <= lost_by_rounding:
            return tensor, report
        return rounded, replace(report, fallback="it lost to round-to-nearest on held-out sequences")

    def _target(self, W: Tensor) -> tuple[Tensor, Tensor | None, float | None]:
        """The weights to aim at, Mₕ, and the strength of the correction; None where the original is not followed."""
        drift = self._stage.drift
        if drift is None:
            return W, None, None
        held_drift = of_outputs(drift, drift.held_out, W, self._threads)
        if self._regression is None:
            return W, held_drift, 0.0
        delta = of_outputs(drift, self._regression, W, self._threads)
        alpha = strength(delta, held_drift, self._stage.held_out.hessian, self._threads)
        return W + alpha * delta, held_drift, alpha

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

"""Quantizes linear layers that read the same inputs.

For each: aim at the weights that make up for earlier losses (`quantkit.solver.error_compensation`), let the method
choose codes for them, and keep the result only if codes that are chosen so beat round-to-nearest on a source that was
left out (`quantkit.pipeline.blocks.left_out`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import Tensor

from quantkit.calibration.activations import Stage
from quantkit.calibration.statistics import LayerStatistics
from quantkit.pipeline.blocks.left_out import Judgement, LeftOut, Task
from quantkit.protocols import Layer, Method, TensorReport
from quantkit.solver.cholesky import divided
from quantkit.solver.error_compensation import of_outputs, regression_factor
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest


class StageSolver:
    """What the layers of a stage share is computed once, when the first of them needs it.

    turn: which fold is left out to judge codes, counted round; all of them, where the codes lose on that one.
    """

    def __init__(self, stage: Stage, threads: int, turn: int = 0) -> None:
        self._stage = stage
        self._threads = threads
        self._turn = turn % len(stage.folds)

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
        left_out = LeftOut(self._stage, self._everything, tasks, self._threads)
        strengths = left_out.strengths
        chosen, judgements = self._chosen(left_out, method, tasks)
        aims = {name: self._aim(task.weight, strengths[name]) for name, task in tasks.items()}
        layers = [Layer(name, aims[name], task.scheme, task.sensitivity) for name, task in tasks.items()]
        made = chosen.quantize(layers, self._everything, threads=self._threads)
        results = {}
        for name, (tensor, report) in zip(tasks, made, strict=True):
            results[name] = tensor, replace(report, strength=strengths[name])
            judgement = judgements.get(name) if report.fallback is None else None
            if judgement is not None:
                with_it = left_out.error(self._turn, name, aims[name], tensor)
                reported = replace(
                    report,
                    strength=strengths[name],
                    left_out=self._stage.names[self._turn],
                    error_without=judgement.error,
                    error_with=with_it,
                    rounding_without=judgement.error_of_rounding,
                )
                results[name] = tensor, reported
                if judgement.lost > judgement.lost_by_rounding and self._loses(left_out, chosen, name):
                    rounded = round_to_nearest(tasks[name].weight.cpu().numpy(), tasks[name].scheme)
                    why = "it lost to round-to-nearest on text left out"
                    results[name] = rounded, replace(reported, fallback=why)
        return results

    def _chosen(
        self, left_out: LeftOut, method: Method, tasks: Mapping[str, Task]
    ) -> tuple[Method, dict[str, Judgement]]:
        """The settings that serve the fold left out best, and how its codes do there; the usual ones without folds."""
        if len(self._stage.folds) == 1:
            return method, {}
        tried = [(choice, left_out.judged(self._turn, choice, list(tasks))) for choice in method.choices]
        chosen, judgements = min(tried, key=lambda pair: sum(judgement.error for judgement in pair[1]))
        return chosen, dict(zip(tasks, judgements, strict=True))

    def _aim(self, W: Tensor, alpha: float | None) -> np.ndarray:
        """W moved, where the original is followed, to make up for what the layers before lost."""
        drift = self._stage.drift
        if drift is not None and alpha and self._regression is not None:
            W = W + alpha * of_outputs(drift, self._regression, W, threads=self._threads)
        aim: np.ndarray = W.cpu().numpy()
        return aim

    def _loses(self, left_out: LeftOut, chosen: Method, name: str) -> bool:
        """Whether round-to-nearest is better on all folds together."""
        found = [left_out.judged(fold, chosen, [name])[0] for fold in range(len(self._stage.folds))]
        return sum(one.lost for one in found) > sum(one.lost_by_rounding for one in found)

    @cached_property
    def _everything(self) -> LayerStatistics:
        return LayerStatistics.of_all(self._stage.folds)

    @cached_property
    def _regression(self) -> Tensor | None:
        drift = self._stage.drift
        if drift is None:
            return None
        factor = regression_factor(self._everything.hessian, self._threads)
        if factor is None:
            return None
        return divided(sum(drift.folds[1:], start=drift.folds[0]), factor, self._threads)

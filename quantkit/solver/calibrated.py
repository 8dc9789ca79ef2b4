"""What every calibrated method does around its own solution: refuse bad input, fall back, and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from quantkit.errors import BadOption, about
from quantkit.protocols import Layer, TensorReport
from quantkit.solver.output_error import output_errors
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest, squared_error
from quantkit.threads import single_threaded_torch

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

Solve = Callable[[Layer, "LayerStatistics"], "tuple[QuantizedTensor | None, str | None]"]
"""From a layer and statistics, finite and not all zero, to the solution, or to None and why there is none."""


def solved_or_rounded(
    name: str, layers: Sequence[Layer], statistics: LayerStatistics | None, solve: Solve, *, threads: int
) -> list[tuple[QuantizedTensor, TensorReport]]:
    """What `solve` makes of each layer, or round-to-nearest where it makes nothing, and the report; see `Method`.

    Inputs that are not finite, or all zero, give round-to-nearest, and the report says so.

    Raises:
        BadOption: no statistics.
        UnsupportedSpec, NonFiniteValues, ValueOutOfRange: as `quantkit.tensors.rounding.round_to_nearest`.
    """
    if statistics is None:
        raise BadOption(f"{name} needs statistics of the inputs")
    return [_solved_or_rounded(layer, statistics, solve, threads) for layer in layers]


def _solved_or_rounded(
    layer: Layer, statistics: LayerStatistics, solve: Solve, threads: int
) -> tuple[QuantizedTensor, TensorReport]:
    with about(layer.name):
        rounded = round_to_nearest(layer.weight, layer.scheme)
    hessian = statistics.hessian
    if not bool(torch.isfinite(hessian.sum())):
        damage, power = squared_error(layer.weight, rounded)
        overflow = "the calibration inputs hold NaN or infinity"
        return rounded, TensorReport(error=damage / power if power else 0.0, fallback=overflow)
    with single_threaded_torch(), torch.inference_mode():
        if bool((hessian.diagonal() > 0).any()):
            made, problem = solve(layer, statistics)
        else:
            made, problem = None, "the calibration inputs are all zero"
        tensor = rounded if made is None else made
        error, by_rounding = output_errors(layer.weight, (tensor, rounded), hessian, threads)
        return tensor, TensorReport(error, by_rounding, fallback=problem)

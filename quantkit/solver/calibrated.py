"""What every calibrated method does around its own solution: refuse bad input, fall back, and report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from quantkit.errors import BadOption
from quantkit.protocols import TensorReport
from quantkit.solver.output_error import output_errors
from quantkit.tensors.quant_spec import QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest, squared_error
from quantkit.threads import single_threaded_torch

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

Solve = Callable[["LayerStatistics"], tuple[QuantizedTensor | None, str | None]]
"""From statistics, finite and not all zero, to the solution, or to None and the reason why there is none."""


def solved_or_rounded(
    name: str,
    weight: np.ndarray,
    spec: QuantSpec,
    statistics: LayerStatistics | None,
    solve: Solve,
    *,
    threads: int,
) -> tuple[QuantizedTensor, TensorReport]:
    """What `solve` makes of `weight`, or round-to-nearest where it makes nothing, and the report; see `Method`.

    Inputs that are not finite, or all zero, give round-to-nearest, and the report says so.

    Raises:
        BadOption: no statistics.
        UnsupportedSpec, NonFiniteValues, ValueOutOfRange: as `quantkit.tensors.rounding.round_to_nearest`.
    """
    if statistics is None:
        raise BadOption(f"{name} needs statistics of the inputs")
    rounded = round_to_nearest(weight, spec)
    hessian = statistics.hessian
    if not bool(torch.isfinite(hessian.sum())):
        damage, power = squared_error(weight, rounded)
        overflow = "the calibration inputs hold NaN or infinity"
        return rounded, TensorReport(error=damage / power if power else 0.0, fallback=overflow)
    with single_threaded_torch(), torch.inference_mode():
        if bool((hessian.diagonal() > 0).any()):
            made, problem = solve(statistics)
        else:
            made, problem = None, "the calibration inputs are all zero"
        tensor = rounded if made is None else made
        error, by_rounding = output_errors(weight, (tensor, rounded), hessian, threads)
        return tensor, TensorReport(error, by_rounding, fallback=problem)

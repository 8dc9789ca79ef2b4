"""Quantization runs of tests and their settings, flat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions, Samples
from quantkit.calibration.statistics import LayerStatistics
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import Layer, Method, TensorReport
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView, TensorView

COMPUTE = ("threads", "device", "bfloat16")


def quantized(
    source: Checkpoint,
    scheme: Scheme,
    method: str | Method,
    *,
    calibration: CalibrationOptions | Samples | None = None,
    skip_positions: int = 4,
    recipe: Recipe | None = None,
    **settings: Any,
) -> Quantization:
    """A run with `settings` of `QuantizeOptions` and of `Compute`."""
    given = calibration if isinstance(calibration, Samples) else None
    chosen = (
        calibration
        if isinstance(calibration, CalibrationOptions)
        else CalibrationOptions(skip_positions=skip_positions)
    )
    compute = Compute(**{key: settings.pop(key) for key in COMPUTE if key in settings})
    options = QuantizeOptions(method=method, scheme=scheme, recipe=recipe or Recipe(), calibration=chosen, **settings)
    return Quantization(source, options, compute=compute, samples=given)


def read_through(run: Quantization) -> Checkpoint:
    """The run's result, read once in the order of the model."""
    made: dict[str, QuantizedView | TensorView] = {}
    for name, view in run.checkpoint.weights.items():
        if isinstance(view, QuantizedView):
            tensor = view.read()
            made[name] = replace(view, read=lambda tensor=tensor: tensor)
        else:
            array = view.read()
            made[name] = replace(view, fetch=lambda start, stop, array=array: array[start:stop])
    return replace(run.checkpoint, weights=made)


def one_layer(
    method: Method,
    weight: np.ndarray,
    scheme: Scheme,
    statistics: LayerStatistics | None = None,
    *,
    sensitivity: Tensor | None = None,
    threads: int = 1,
) -> tuple[QuantizedTensor, TensorReport]:
    """What a method makes of a single layer."""
    ((tensor, report),) = method.quantize([Layer("w", weight, scheme, sensitivity)], statistics, threads=threads)
    return tensor, report

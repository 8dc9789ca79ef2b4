"""What a user may choose about a quantization run; the defaults stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.calibration.samples import CalibrationOptions
from quantkit.pipeline.recipe import Recipe
from quantkit.protocols import Method
from quantkit.tensors.scheme import Scheme

NO_EXCEPTIONS = Recipe()
OWN_TEXT = CalibrationOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How a model is quantized.

    method: of every linear layer that the recipe does not decide; see `quantkit.registry.names("methods")`, or one of
        their kind with settings of its own.
    scheme: theirs, likewise; None = the method's own (`quantkit.protocols.Method.default_scheme`).
    recipe: exceptions.
    calibration: what to calibrate on.
    propagate: whether each layer makes up for what the layers before it lost.
    smooth: whether to scale the inputs of calibrated layers (`quantkit.solver.smoothing`); None = where their methods
        ask for it.
    fisher: whether errors of outputs count by what they do to the predictions (`quantkit.calibration.fisher`), for
        methods that can tell them apart.
    schemes: by weight name, in place of `scheme` and `recipe`: what a container asks for; weights that are not named
        stay dense.
    strict: whether to refuse a model of which only some weights are ternary as they lie; else the others stay dense.
    """

    method: str | Method = "gptq"
    scheme: Scheme | None = None
    recipe: Recipe = NO_EXCEPTIONS
    calibration: CalibrationOptions = OWN_TEXT
    propagate: bool = True
    smooth: bool | None = None
    fisher: bool = True
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    strict: bool = False

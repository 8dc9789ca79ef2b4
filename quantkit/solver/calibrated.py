"""What every calibrated method does around its own solution: refuse bad input, fall back, and report.

Torch is imported where it is used, so that planning can hold a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from quantkit.errors import BadOption, about
from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.solver.stages import Stages
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest, squared_error
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import INT4
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
    import torch  # noqa: PLC0415 - heavy, and planning does without it

    from quantkit.solver.output_error import output_errors  # noqa: PLC0415 - imports torch

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


@dataclass(frozen=True, slots=True)
class StagedMethod:
    """A method whose codes the stages of `quantkit.solver.solve` choose. A subclass names it.

    The attributes are those of `quantkit.protocols.Method`, and
    dampings: what else `Stages.damping` may be, where that serves sources that are left out better.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    default_scheme: ClassVar[Scheme] = INT4
    takes_over: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = True
    weighs_outputs: ClassVar[bool] = True
    scales_inputs: ClassVar[bool] = False

    stages: Stages = field(default_factory=Stages)
    dampings: tuple[float, ...] = ()

    @property
    def choices(self) -> tuple[Method, ...]:
        """See `quantkit.protocols.Method`: other dampings, where the settings name some."""
        return self, *(
            replace(self, stages=replace(self.stages, damping=damping), dampings=()) for damping in self.dampings
        )

    def input_scales(self, readers: Readers, *, threads: int = 1) -> InputScales:
        """See `quantkit.protocols.Method`: AWQ's, where the user asks for them."""
        from quantkit.solver.smoothing_search import chosen_scales  # noqa: PLC0415 - imports torch

        return chosen_scales(readers, threads=threads)

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """See `quantkit.protocols.Method`.

        A Hessian that cannot be factored gives round-to-nearest as well, and the report says so. Raises as
        `solved_or_rounded`.
        """
        from quantkit.solver.solve import solved  # noqa: PLC0415 - imports torch

        return solved_or_rounded(
            self.name,
            layers,
            statistics,
            lambda layer, given: solved(self.stages, layer, given, threads),
            threads=threads,
        )

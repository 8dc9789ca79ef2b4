"""GPTQ in stages: searched grids, error feedback in the order of importance, then descent on the true quadratic.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022), with everything on top of it that a standard container allows:

    search      the parameters of every group minimise the error weighted by the inputs' energy
    act_order   columns with the most energy are rounded first; groups stay where they are on disk
    rounds      sweeps of coordinate descent over the codes, each with a closed-form refit of scales
    damping     share of H's mean diagonal added to it: the paper's 0.01 keeps H invertible, more of it keeps what is
                made up for from hanging on what only the calibration text has

and, where it is known what the outputs do to the predictions, feedback from row to row.

Without any it is the textbook's algorithm: the parameters of a group are chosen when its first column is reached. Where
H cannot be factored, more and more damping is tried.

The work is done in `quantkit.solver.solve`, which needs torch; to plan with a method takes only what stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.solver.stages import Stages
from quantkit.tensors.quantized_tensor import QuantizedTensor

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics


@dataclass(frozen=True, slots=True)
class Gptq:
    """The method and its stages; see the module's docstring. All off, damping 0.01, is the textbook's algorithm.

    dampings: what else `Stages.damping` may be, where that serves sources that are left out better.
    """

    name: str = field(default="gptq", init=False)
    summary: str = field(default="searched grids, error feedback, coordinate descent: needs calibration", init=False)
    needs_calibration: bool = field(default=True, init=False)
    weighs_outputs: bool = field(default=True, init=False)
    scales_inputs: bool = field(default=False, init=False)

    stages: Stages = field(default_factory=Stages)
    dampings: tuple[float, ...] = ()

    @property
    def choices(self) -> tuple[Method, ...]:
        """See `quantkit.protocols.Method`: other dampings, where the settings name some."""
        others = (replace(self.stages, damping=damping) for damping in self.dampings)
        return self, *(Gptq(stages) for stages in others)

    def input_scales(self, readers: Readers, *, threads: int = 1) -> InputScales:
        """See `quantkit.protocols.Method`: AWQ's, where the user asks for them."""
        from quantkit.solver.smoothing_search import chosen_scales  # noqa: PLC0415 - imports torch

        return chosen_scales(readers, threads=threads)

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """See `quantkit.protocols.Method`.

        A Hessian that cannot be factored gives round-to-nearest as well, and the report says so. Raises as
        `quantkit.solver.calibrated.solved_or_rounded`.
        """
        from quantkit.solver.calibrated import solved_or_rounded  # noqa: PLC0415 - imports torch
        from quantkit.solver.solve import solved  # noqa: PLC0415 - imports torch

        return solved_or_rounded(
            self.name,
            layers,
            statistics,
            lambda layer, given: solved(self.stages, layer, given, threads),
            threads=threads,
        )


METHOD: Method = Gptq(dampings=(0.3,))

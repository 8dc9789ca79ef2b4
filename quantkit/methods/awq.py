"""AWQ: inputs scaled beforehand, parameters searched, every weight to its nearest level. No error feedback.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023). What layers read is divided by scales that the layers'
columns are multiplied by, so that large inputs lose less (`input_scales`; what comes before takes the division up).
Then a search (the paper's clipping) finds the parameters of every group that minimise the error weighted by the inputs'
energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import INT4

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics


class ActivationAware:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Method`."""

    name = "awq"
    summary = "scaled inputs, searched grids, nearest codes: needs calibration"
    default_scheme = INT4
    needs_calibration = True
    weighs_outputs = False
    takes_over = False
    scales_inputs = True

    @property
    def choices(self) -> tuple[Method, ...]:
        """See `quantkit.protocols.Method`."""
        return (self,)

    def input_scales(self, readers: Readers, *, threads: int = 1) -> InputScales:
        """See `quantkit.protocols.Method`: the exponent of the inputs' mean size that serves the layers best."""
        from quantkit.solver.smoothing_search import chosen_scales  # noqa: PLC0415 - imports torch

        return chosen_scales(readers, threads=threads)

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """See `quantkit.protocols.Method`. Raises as `quantkit.solver.calibrated.solved_or_rounded`."""
        from quantkit.solver.calibrated import solved_or_rounded  # noqa: PLC0415 - imports torch
        from quantkit.solver.search import searched_codes  # noqa: PLC0415 - imports torch

        return solved_or_rounded(
            self.name,
            layers,
            statistics,
            lambda layer, given: (
                searched_codes(layer.weight, layer.scheme, given.hessian.diagonal(), threads),
                None,
            ),
            threads=threads,
        )


METHOD: Method = ActivationAware()

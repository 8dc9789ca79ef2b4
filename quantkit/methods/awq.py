"""AWQ: inputs scaled beforehand, every group's grid searched, every weight to its nearest point. No error feedback.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023). Its scaling belongs to a whole block and is done by
`quantkit.solver.smoothing` for every method that `smooths`. What remains for a single matrix is the search for a grid
(the paper's clipping): scale and zero point of every group minimise the error weighted by the inputs' energy
(`quantkit/solver/search.py`, which needs torch; to plan with a method takes only what stands here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantkit.protocols import Method, TensorReport
from quantkit.tensors.quant_spec import QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics


class ActivationAware:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Method`."""

    name = "awq"
    summary = "scaled inputs, searched grids, nearest codes: needs calibration"
    needs_calibration = True
    smooths = True
    weighs_outputs = False

    def quantize(
        self, weight: np.ndarray, spec: QuantSpec, statistics: LayerStatistics | None, *, threads: int = 1
    ) -> tuple[QuantizedTensor, TensorReport]:
        """See `quantkit.protocols.Method`. Raises as `quantkit.solver.calibrated.solved_or_rounded`."""
        from quantkit.solver.calibrated import solved_or_rounded  # noqa: PLC0415 - imports torch
        from quantkit.solver.search import searched_codes  # noqa: PLC0415 - imports torch

        return solved_or_rounded(
            self.name,
            weight,
            spec,
            statistics,
            lambda given: (searched_codes(weight, spec, given.hessian.diagonal(), threads), None),
            threads=threads,
        )


METHOD: Method = ActivationAware()

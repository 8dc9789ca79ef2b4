"""Round to nearest: every weight to the nearest point of its group's grid. No calibration, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantkit.protocols import Method, TensorReport
from quantkit.tensors.quant_spec import QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest, squared_error, stacked_rows
from quantkit.threads import ordered_map

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

ROW_CHUNK = 512


class RoundToNearest:
    """The baseline that every other method must beat, and the fallback of those that meet singular statistics."""

    name = "rtn"
    summary = "round to nearest: fast, needs no calibration"
    needs_calibration = False
    smooths = False
    weighs_outputs = False

    def quantize(
        self, weight: np.ndarray, spec: QuantSpec, statistics: LayerStatistics | None = None, *, threads: int = 1
    ) -> tuple[QuantizedTensor, TensorReport]:
        """See `quantkit.protocols.Method`; `statistics` are not read. Raises as
        `quantkit.tensors.rounding.round_to_nearest`.
        """
        rows = weight.shape[0]
        spec.groups(weight.shape[1])
        parts = list(
            ordered_map(
                lambda start: _quantized_rows(weight[start : start + ROW_CHUNK], spec),
                range(0, rows, ROW_CHUNK),
                threads,
            )
        )
        damage, power = sum(part[1] for part in parts), sum(part[2] for part in parts)
        return stacked_rows([part[0] for part in parts]), TensorReport(error=damage / power if power else 0.0)


def _quantized_rows(weight: np.ndarray, spec: QuantSpec) -> tuple[QuantizedTensor, float, float]:
    """Rows of the result, ||W - Q||^2 and ||W||^2."""
    quantized = round_to_nearest(weight, spec)
    return quantized, *squared_error(weight, quantized)


METHOD: Method = RoundToNearest()

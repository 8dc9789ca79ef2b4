"""Round to nearest: every weight to the nearest level of its group. No calibration, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import BadOption, about
from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest, squared_error, stacked_rows
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import INT4
from quantkit.threads import ordered_map

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics

ROW_CHUNK = 512


class RoundToNearest:
    """The baseline that every other method must beat, and the fallback of those that meet singular statistics."""

    name = "rtn"
    summary = "round to nearest: fast, needs no calibration"
    default_scheme = INT4
    needs_calibration = False
    weighs_outputs = False
    takes_over = False
    scales_inputs = False

    @property
    def choices(self) -> tuple[Method, ...]:
        """See `quantkit.protocols.Method`."""
        return (self,)

    def input_scales(self, readers: Readers, *, threads: int = 1) -> InputScales:
        """See `quantkit.protocols.Method`; raises `BadOption`, because nothing is known of the inputs."""
        raise BadOption("rtn is not calibrated, so there is nothing to scale inputs by")

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None = None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """See `quantkit.protocols.Method`; `statistics` are not read. Raises as
        `quantkit.tensors.rounding.round_to_nearest`.
        """
        return [_rounded(layer, threads) for layer in layers]


def _rounded(layer: Layer, threads: int) -> tuple[QuantizedTensor, TensorReport]:
    weight, scheme = layer.weight, layer.scheme
    starts = range(0, len(weight), ROW_CHUNK)
    with about(layer.name):
        scheme.groups(weight.shape[1])
        parts = list(
            ordered_map(lambda start: _rounded_rows(weight[start : start + ROW_CHUNK], scheme), starts, threads)
        )
    damage, power = sum(part[1] for part in parts), sum(part[2] for part in parts)
    return stacked_rows([part[0] for part in parts]), TensorReport(error=damage / power if power else 0.0)


def _rounded_rows(weight: np.ndarray, scheme: Scheme) -> tuple[QuantizedTensor, float, float]:
    """Rows of the result, ||W - Q||^2 and ||W||^2."""
    quantized = round_to_nearest(weight, scheme)
    return quantized, *squared_error(weight, quantized)


METHOD: Method = RoundToNearest()

"""Weights that lie on a grid of codes already: taken over code for code, and never changed.

Training for few bits publishes dense files of such weights ("unquantized", "fake-quantized"). Rounding them anew finds
another grid; here the codes and scales are found whose products round to every value of the file, bit for bit, and a
weight that has none is refused. No calibration, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import BadOption, UnsupportedSpec, about
from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.tensors.gridded import fitted
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import squared_error
from quantkit.tensors.schemes.affine_groups import INT4, AffineGroups
from quantkit.threads import ordered_map

if TYPE_CHECKING:
    from quantkit.calibration.statistics import LayerStatistics


class Exact:
    """The import of what was trained for few bits."""

    name = "exact"
    summary = "codes and scales that weights have already: trained for few bits, refused where not"
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
        """See `quantkit.protocols.Method`; raises `BadOption`, because weights are not to change."""
        raise BadOption("exact changes no weight, so inputs are not scaled")

    def quantize(
        self, layers: Sequence[Layer], statistics: LayerStatistics | None = None, *, threads: int = 1
    ) -> list[tuple[QuantizedTensor, TensorReport]]:
        """See `quantkit.protocols.Method`; `statistics` are not read.

        Raises:
            UnsupportedSpec: a scheme that is not symmetric, or a weight that does not lie on its grid.
        """
        return list(ordered_map(_taken, layers, threads))


def _taken(layer: Layer) -> tuple[QuantizedTensor, TensorReport]:
    with about(layer.name):
        tensor = _on_its_grid(layer)
    damage, power = squared_error(layer.weight, tensor)
    return tensor, TensorReport(error=damage / power if power else 0.0)


def _on_its_grid(layer: Layer) -> QuantizedTensor:
    scheme = layer.scheme
    if not isinstance(scheme, AffineGroups) or not scheme.symmetric or scheme.ternary:
        raise UnsupportedSpec(
            f"only symmetric codes are taken over as they lie, not {scheme}",
            hint="leave out --asym; ternary weights are taken over by --method ternary",
        )
    fit = fitted(layer.weight, scheme)
    if not fit.on_grid.all():
        row, group = np.argwhere(~fit.on_grid)[0].tolist()
        raise UnsupportedSpec(
            f"{100 * (1 - fit.on_grid.mean()):.3g} % of its groups are not codes x scale of {scheme} "
            f"(first: row {row}, group {group})",
            hint="name the bits and the group size that it was trained for; any other model takes --method gptq",
        )
    zero = np.full(fit.scale.shape, scheme.midpoint, np.uint8)
    return QuantizedTensor(scheme, fit.codes, {"scale": fit.scale, "zero": zero})


METHOD: Method = Exact()

"""AWQ: inputs scaled beforehand, every group's grid searched, every weight to its nearest point. No error feedback.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023). Its scaling belongs to a whole block and is done by
`quantkit.smoothing` for every method that `smooths`. What remains for a single matrix is the search for a grid
(the paper's clipping): scale and zero point of every group minimise the error weighted by the inputs' energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.grid import nearest_codes, stacked_rows
from quantkit.methods._calibrated import solved_or_rounded
from quantkit.methods._error import row_chunks
from quantkit.methods._search import SHRINKS, searched_grid
from quantkit.parallel import torch_map
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.spec import SCALE_DTYPES, QuantSpec

if TYPE_CHECKING:
    from quantkit.calibration import InputStatistics


class ActivationAware:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Method`."""

    name = "awq"
    summary = "scaled inputs, searched grids, nearest codes: needs calibration"
    needs_calibration = True
    smooths = True

    def quantize(
        self, weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None, *, threads: int = 1
    ) -> tuple[QuantizedTensor, TensorReport]:
        """See `quantkit.protocols.Method`. Raises as `quantkit.methods._calibrated.solved_or_rounded`."""
        return solved_or_rounded(
            self.name,
            weight,
            spec,
            statistics,
            lambda hessian: (_nearest(weight, spec, hessian.diagonal(), threads), None),
            threads=threads,
        )


def _nearest(weight: np.ndarray, spec: QuantSpec, energy: Tensor, threads: int) -> QuantizedTensor:
    importance = (energy / energy.max()).float()
    chunks = row_chunks(len(weight), energy.device)

    def nearest(start: int) -> QuantizedTensor:
        rows = torch.from_numpy(weight[start : start + chunks.step]).to(energy.device)
        return nearest_on_searched_grid(rows, importance, spec)

    return stacked_rows(torch_map(nearest, chunks, threads))


def nearest_on_searched_grid(
    weight: Tensor, importance: Tensor, spec: QuantSpec, shrinks: Sequence[float] = SHRINKS
) -> QuantizedTensor:
    """Float32 `weight` [rows, cols] on the grids that `searched_grid` finds, each weight by itself."""
    rows, cols = weight.shape
    found = [x.cpu().numpy() for x in searched_grid(weight, importance, spec, shrinks)]
    scale, zero = found[0].astype(SCALE_DTYPES[spec.scale_dtype]), found[1].astype(np.uint8)
    groups = weight.cpu().numpy().reshape(rows, spec.groups(cols), -1)
    return QuantizedTensor(spec, nearest_codes(groups, scale, zero, spec).reshape(rows, cols), scale, zero)


METHOD: Method = ActivationAware()

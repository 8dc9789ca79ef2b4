"""Round to nearest, and what it costs: parameters cover every group's range, every weight takes the nearest code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.errors import NonFiniteValues
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme


def require_finite(weight: np.ndarray) -> None:
    """Raise `NonFiniteValues` with the first position when `weight` (rows, cols) holds NaN or infinity."""
    if not np.isfinite(weight).all():
        bad = np.argwhere(~np.isfinite(weight))
        raise NonFiniteValues(f"{len(bad)} values are NaN or infinite (first at {bad[0].tolist()})")


def round_to_nearest(weight: np.ndarray, scheme: Scheme) -> QuantizedTensor:
    """Quantize float32 `weight` (rows, cols) with parameters that cover every group, each weight by itself.

    Raises:
        UnsupportedSpec: a group size that does not divide the columns.
        NonFiniteValues: NaN or infinity in `weight`.
        ValueOutOfRange: a parameter beyond its dtype.
    """
    require_finite(weight)
    rows, cols = weight.shape
    groups = weight.reshape(rows, scheme.groups(cols), -1)
    arrays = scheme.covering(groups)
    return QuantizedTensor(scheme, scheme.nearest(groups, arrays).reshape(rows, cols), arrays)


def squared_error(weight: np.ndarray, quantized: QuantizedTensor) -> tuple[float, float]:
    """||W - Q||^2 and ||W||^2 of float32 `weight` (rows, cols) and what it became."""
    return energy(weight - quantized.dequantized()), energy(weight)


def energy(values: np.ndarray) -> float:
    """Sum of squares of float32 values, each squared and added in float64, without a copy of them."""
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def stacked_rows(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """The tensor whose consecutive rows `parts` are; all of one scheme and width."""
    first = parts[0]
    return QuantizedTensor(
        first.scheme,
        np.concatenate([part.codes for part in parts]),
        {name: np.concatenate([part.arrays[name] for part in parts]) for name in first.arrays},
    )

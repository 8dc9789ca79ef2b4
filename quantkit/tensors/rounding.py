"""Affine grids: scale and zero point of a group of weights, and the nearest code of a weight.

    weight ≈ scale * (code - zero),  code in 0 .. levels - 1

    symmetric:   scale = absmax / ((levels - 1) / 2), zero = levels / 2
    asymmetric:  scale = (max - min) / (levels - 1), zero = round(-min / scale), with 0 inside [min, max]

A scale is rounded to the spec's dtype before any code is chosen from it. It is never zero: a group that is too
small for the dtype gets the smallest subnormal, a group of zeros gets 1 and the code of zero, which is exact.
Everything here is elementwise numpy, so the same bits come out on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.tensors.quant_spec import SCALE_DTYPES, QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor

SCALE_LIMITS: Mapping[str, tuple[float, float]] = {
    "float16": (2.0**-24, 65504.0),
    "bfloat16": (2.0**-24, 65280.0),
    "float32": (2.0**-126, 3.0e38),
}
"""Smallest and largest scale that is stored. A bfloat16 scale is one that float16 holds as well."""


def require_finite(weight: np.ndarray) -> None:
    """Raise `NonFiniteValues` with the first position when `weight` (rows, cols) holds NaN or infinity."""
    if not np.isfinite(weight).all():
        bad = np.argwhere(~np.isfinite(weight))
        raise NonFiniteValues(f"{len(bad)} values are NaN or infinite (first at {bad[0].tolist()})")


def fitted_grid(groups: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point that cover every group's range.

    Args:
        groups: finite float32 weights, the last axis runs along one group.
        spec: bits, symmetry and the scales' dtype; its group size is not read.

    Returns:
        scale (spec.scale_dtype) and zero (uint8), shaped as `groups` without its last axis.

    Raises:
        ValueOutOfRange: a scale beyond the largest number of its dtype.
    """
    low = np.minimum(groups.min(axis=-1), 0).astype(np.float64)
    high = np.maximum(groups.max(axis=-1), 0).astype(np.float64)
    span = 2 * np.maximum(high, -low) if spec.symmetric else high - low
    scale = _rounded_scale(span / (spec.levels - 1), spec)
    if spec.symmetric:
        return scale, np.full(scale.shape, spec.midpoint, np.uint8)
    zero = np.rint(-low / scale.astype(np.float64))
    return scale, np.minimum(zero, spec.levels - 1).astype(np.uint8)


def _rounded_scale(wanted: np.ndarray, spec: QuantSpec) -> np.ndarray:
    limits = SCALE_LIMITS[spec.scale_dtype]
    if wanted.size and wanted.max() > limits[1]:
        raise ValueOutOfRange(
            f"a group needs a scale of {wanted.max():.3g}; the largest {spec.scale_dtype} is {limits[1]:.3g}",
            hint="look at the checkpoint: trained weights are seldom that large",
        )
    clipped = np.maximum(wanted, limits[0])
    if spec.scale_dtype == "bfloat16":
        clipped = clipped.astype(np.float16)  # so that engines that compute in either dtype hold the same number
    rounded: np.ndarray = np.where(wanted == 0, 1, clipped).astype(SCALE_DTYPES[spec.scale_dtype])
    return rounded


def nearest_codes(groups: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """The code nearest to every weight, ties to even; uint8, shaped as `groups`.

    `scale` and `zero` are shaped as `groups` without its last axis.
    """
    steps = groups / scale.astype(np.float32)[..., None]
    np.rint(steps, out=steps)
    steps += zero.astype(np.float32)[..., None]
    np.clip(steps, 0, spec.levels - 1, out=steps)
    return steps.astype(np.uint8)


def round_to_nearest(weight: np.ndarray, spec: QuantSpec) -> QuantizedTensor:
    """Quantize float32 `weight` (rows, cols) with every group's own grid, each weight by itself.

    Raises:
        UnsupportedSpec: a group size that does not divide the columns.
        NonFiniteValues: NaN or infinity in `weight`.
        ValueOutOfRange: a scale beyond the scales' dtype.
    """
    require_finite(weight)
    rows, cols = weight.shape
    groups = weight.reshape(rows, spec.groups(cols), -1)
    scale, zero = fitted_grid(groups, spec)
    codes = nearest_codes(groups, scale, zero, spec).reshape(rows, cols)
    return QuantizedTensor(spec, codes, scale, zero)


def squared_error(weight: np.ndarray, quantized: QuantizedTensor) -> tuple[float, float]:
    """||W - Q||^2 and ||W||^2 of float32 `weight` (rows, cols) and what it became, in float64."""
    damage = np.subtract(weight, quantized.dequantized(), dtype=np.float64)
    return float(np.square(damage).sum()), float(np.square(weight, dtype=np.float64).sum())


def stacked_rows(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """The tensor whose consecutive rows `parts` are; all of one spec and width."""
    return QuantizedTensor(
        parts[0].spec,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.zero for part in parts]),
    )

"""Weights that lie on a grid of codes already: dense values that are code x scale, rounded to the file's dtype.

Training for few bits publishes such files beside the packed ones ("unquantized", "fake-quantized": MiniCPM4-0.5B-QAT).
A value v that was rounded from s * q confines s to the numbers that round to v: an interval. A group lies on the grid
if for some code q of its largest value the intervals of all its values, each with its own code, have a scale in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from quantkit.tensors.packing import magnitude_patterns
from quantkit.tensors.rounding import require_finite
from quantkit.tensors.scheme import PER_ROW, SCALE_DTYPES, SCALE_LIMITS
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView

BFLOAT16, FLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
FIRST_ROWS = 8
"""Rows that tell ordinary weights from such ones."""
FEW_COLUMNS = 12
"""Columns that tell most codes of a group's largest value from the right one."""


@dataclass(frozen=True, slots=True)
class GridFit:
    """codes: uint8 [rows, cols]. scale: [rows, groups], of the scheme's dtype. on_grid: bool [rows, groups]; what
    stands for a group that is not on the grid means nothing."""

    codes: np.ndarray
    scale: np.ndarray
    on_grid: np.ndarray


def fitted(weight: np.ndarray, scheme: AffineGroups) -> GridFit:
    """The codes and scales of symmetric `scheme` whose products round to `weight`, float32 [rows, cols], bit for bit.

    They are rounded to the narrowest of bfloat16, float16 and float32 that holds every value of `weight`; a zero's
    sign does not count. Where several grids fit, the one of the fewest levels is taken; of its scales one that needs no
    rounding, else the middle.

    Raises:
        UnsupportedSpec: a group size that does not divide the columns.
        NonFiniteValues: NaN or infinity in `weight`.
    """
    require_finite(weight)
    rows, cols = weight.shape
    groups = scheme.groups(cols)
    values = np.ascontiguousarray(weight).astype(file_dtype(weight)).reshape(rows * groups, -1)
    codes = np.zeros(values.shape, np.int16)
    scale = np.ones(len(values), SCALE_DTYPES[scheme.scale_dtype])
    left = np.flatnonzero((values != 0).any(axis=1))  # a group of zeros fits any scale
    largest = np.abs(values.astype(np.float32)).max(axis=1).astype(np.float64)
    on_grid = np.ones(len(values), bool)
    on_grid[left] = False
    for reach in range(1, scheme.midpoint + 1):
        left = left[~on_grid[left]]
        # Most groups are not of this reach, and a few columns tell.
        least, most, _ = _scales(values[left, :FEW_COLUMNS], reach / largest[left])
        tried = left[least <= most]
        found, chosen, factor = _with_largest(values[tried], reach, largest[tried], scheme)
        codes[tried[found]], scale[tried[found]] = chosen[found], factor[found]
        on_grid[tried[found]] = True
    unsigned = (codes + scheme.midpoint).astype(np.uint8)
    return GridFit(unsigned.reshape(rows, cols), scale.reshape(rows, groups), on_grid.reshape(rows, groups))


def common_grid(views: Sequence[TensorView], bits: int) -> AffineGroups | None:
    """The widest usual groups in which the first rows of all `views` lie on grids of `bits`; None if they do not."""
    for width in (PER_ROW, 128, 64, 32):
        scheme = AffineGroups(bits=bits, group_size=width)
        if views and all(_begins_on(view, scheme) for view in views):
            return scheme
    return None


def _begins_on(view: TensorView, scheme: AffineGroups) -> bool:
    rows = np.asarray(view.fetch(0, min(FIRST_ROWS, view.rows)), np.float32)
    fits = scheme.group_size == PER_ROW or rows.shape[1] % scheme.group_size == 0
    return fits and bool(np.isfinite(rows).all()) and bool(fitted(rows, scheme).on_grid.all())


def file_dtype(weight: np.ndarray) -> np.dtype:
    """The narrowest of bfloat16, float16 and float32 that holds every value of float32 `weight`."""
    for dtype in (BFLOAT16, FLOAT16):
        with np.errstate(over="ignore"):
            if np.array_equal(weight.astype(dtype).astype(np.float32), weight):
                return dtype
    return FLOAT32


def _with_largest(
    values: np.ndarray, reach: int, largest: np.ndarray, scheme: AffineGroups
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which groups fit with `reach` as the code of their largest value; signed codes, and signed scales [n]."""
    least, most, codes = _scales(values, reach / largest)
    signed = np.copysign(codes, values.astype(np.float32))
    turned = np.zeros(len(values), bool)
    if reach == scheme.midpoint:  # the levels are -8 .. 7: one side alone reaches so far, and a negative scale turns it
        turned = (signed == reach).any(axis=1)
        signed[turned] *= -1
    fits = np.zeros(len(values), bool)
    scale = np.ones(len(values), SCALE_DTYPES[scheme.scale_dtype])
    # The first needs no rounding where any does not. An end may be the only one: ties are rounded to even.
    for wanted in (largest / reach, (least + most) / 2, least, most):
        tried = _rounded(wanted, scheme)
        tried = np.where(turned, -tried, tried)
        with np.errstate(over="ignore"):
            products = (tried.astype(np.float32)[:, None] * signed).astype(values.dtype)
        new = (products == values).all(axis=1) & ~fits
        scale[new] = tried[new]
        fits |= new
    return fits & (signed < scheme.levels - scheme.midpoint).all(axis=1), signed.astype(np.int16), scale


def _scales(values: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between what scales [n] lie that round to `values` [n, cols], and the magnitudes of their codes, in float32.

    inverse: 1 over the scale that the codes are taken from, [n].
    """
    low, high = _bounds(values)
    codes = np.rint(np.abs(values.astype(np.float32)) * inverse[:, None].astype(np.float32))
    used, steps = codes > 0, np.maximum(codes, 1).astype(np.float64)
    return np.where(used, low / steps, 0).max(axis=1), np.where(used, high / steps, np.inf).min(axis=1), codes


def _bounds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between what two float64 magnitudes a number rounds to each value."""
    patterns = magnitude_patterns(values)
    below, above = np.maximum(patterns, 1) - patterns.dtype.type(1), patterns + patterns.dtype.type(1)
    here, low, high = (part.view(values.dtype).astype(np.float64) for part in (patterns, below, above))
    return (low + here) / 2, (here + high) / 2


def _rounded(wanted: np.ndarray, scheme: AffineGroups) -> np.ndarray:
    """The nearest scale that the scheme's dtype has, and containers of both half-precision dtypes agree on."""
    clipped = np.clip(wanted, *SCALE_LIMITS[scheme.scale_dtype])
    if scheme.scale_dtype == "bfloat16":
        clipped = clipped.astype(np.float16)
    scale: np.ndarray = clipped.astype(SCALE_DTYPES[scheme.scale_dtype])
    return scale

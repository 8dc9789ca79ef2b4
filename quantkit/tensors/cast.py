"""Values from one float dtype to another, chunk by chunk, never silently damaged.

Every conversion rounds to nearest, ties to even, subnormals included. NaN, infinity, and values that the target
cannot hold (bfloat16 reaches 3.4e38, float16 only 65504) stop the work with the tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.tensors.packing import magnitude_patterns, normal_float16_patterns
from quantkit.tensors.views import BFLOAT16

FLOAT16 = np.dtype("<f2")
FLOAT32 = np.dtype("<f4")
FLOATS: Mapping[str, np.dtype] = {"bf16": BFLOAT16, "f16": FLOAT16, "f32": FLOAT32}
"""The dtypes that dense weights may have, by the names that users type."""

_INFINITY: Mapping[np.dtype, int] = {BFLOAT16: 0x7F80, FLOAT16: 0x7C00, FLOAT32: 0x7F800000}
"""Bit pattern of infinity; every pattern from there on is infinite or NaN."""
_LARGEST: Mapping[tuple[np.dtype, np.dtype], int] = {
    (BFLOAT16, FLOAT16): 0x477F,  # 65280, the last bfloat16 below 65504
    (FLOAT32, FLOAT16): 0x477FE000,  # 65504
    (FLOAT32, BFLOAT16): 0x7F7F0000,  # 3.3895e38
}
"""Bit pattern of the largest source value that the target holds, for targets of smaller range: (source, target)."""


def converted(name: str, array: np.ndarray, dtype: np.dtype, *, offset: int = 0) -> np.ndarray:
    """`array` as `dtype`; both bfloat16, float16 or float32.

    Args:
        name: the tensor's name, for messages.
        array: C-contiguous values, such as a chunk of a tensor.
        dtype: the target.
        offset: flat index of the first value within its tensor, for messages.

    Returns:
        An array of the same shape; `array` itself when it already has the dtype.

    Raises:
        NonFiniteValues: NaN or infinity, whatever the target.
        ValueOutOfRange: a magnitude beyond the largest value of `dtype`.
    """
    check_range(name, array, dtype, offset=offset)
    if array.dtype == dtype:
        return array
    if (array.dtype, dtype) == (BFLOAT16, FLOAT16):
        # Moving bits, with a table for the few that become subnormal, takes half the time of a table for all.
        bits = array.reshape(-1).view(np.uint16)
        patterns, small = normal_float16_patterns(bits)
        halves = patterns.view(dtype)
        halves[small] = _float16_of_bfloat16()[bits[small]]
        return halves.reshape(array.shape)
    cast: np.ndarray = array.astype(dtype)
    return cast


def check_range(name: str, array: np.ndarray, dtype: np.dtype, *, offset: int = 0) -> None:
    """Raise what `converted` raises, convert nothing."""
    if not array.size:
        return
    magnitudes = magnitude_patterns(array)
    infinity = _INFINITY[array.dtype]
    largest = _LARGEST.get((array.dtype, dtype), infinity - 1)
    if int(magnitudes.max()) <= largest:
        return
    flat = magnitudes.reshape(-1)
    bad = np.flatnonzero(flat >= infinity)
    if bad.size:
        raise NonFiniteValues(
            f"tensor {name!r} has {bad.size:,} NaN or infinite values in {array.size:,} read, "
            f"the first at flat index {offset + bad[0]:,}",
            hint="the source is damaged or was trained into overflow; use a sound one",
        )
    bad = np.flatnonzero(flat > largest)
    value = float(array.reshape(-1)[bad[0]])
    raise ValueOutOfRange(
        f"tensor {name!r} has {bad.size:,} values beyond {_reach(dtype)} in {array.size:,} read, "
        f"the first ({value:g}) at flat index {offset + bad[0]:,}",
        hint="write f32, which holds every value" if dtype == BFLOAT16 else "write bf16 or f32, which reach further",
    )


def _reach(dtype: np.dtype) -> str:
    return "float16's 65504" if dtype == FLOAT16 else "bfloat16's 3.39e+38"


@cache
def _float16_of_bfloat16() -> np.ndarray:
    """float16 of every bfloat16 pattern; infinity where it does not fit, which `check_range` has refused before."""
    every = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16).astype(np.float32)
    with np.errstate(over="ignore"):
        table: np.ndarray = every.astype(FLOAT16)
    table.flags.writeable = False
    return table

"""Digests of dense values: whether two tensors hold the same numbers, whatever dtype and container hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from quantkit.tensors.views import BFLOAT16

FLOAT32 = np.dtype("<f4")
ROUNDINGS: Mapping[str, tuple[np.dtype, ...]] = {
    "float32": (),
    "bfloat16": (BFLOAT16,),
    "float16": (np.dtype("<f2"),),
    "bfloat16, then float16": (BFLOAT16, np.dtype("<f2")),
}
"""What may happen to a float32 value on its way into a dense artifact: dtypes that it is rounded to, in turn."""


def values_digest(chunks: Iterable[np.ndarray]) -> str:
    """SHA-256, hexadecimal, of values as little-endian float32, in their order; float dtypes of 16 bits are widened."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(np.ascontiguousarray(chunk, FLOAT32).data)
    return sha256.hexdigest()


class RoundedDigests:
    """`values_digest` of float32 values after each of `ROUNDINGS`, made in one pass over them."""

    def __init__(self) -> None:
        self._sha256 = {name: hashlib.sha256() for name in ROUNDINGS}

    def update(self, values: np.ndarray) -> None:
        """Take the next float32 values, none of them NaN."""
        for name, dtypes in ROUNDINGS.items():
            rounded = np.ascontiguousarray(values, FLOAT32)
            for dtype in dtypes:
                rounded = _rounded(rounded, dtype)
            self._sha256[name].update(rounded.data)

    def digests(self) -> dict[str, str]:
        """Hexadecimal, by the names of `ROUNDINGS`. Values beyond a dtype's range make a digest that nothing has."""
        return {name: sha256.hexdigest() for name, sha256 in self._sha256.items()}


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float32 values rounded to nearest even in another dtype, in float32 again."""
    if dtype != BFLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(dtype).astype(FLOAT32)
    bits = values.view(np.uint32)  # the upper half of the bits, four times as fast as a cast there and back
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    whole: np.ndarray = ((bits + odd + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)).view(FLOAT32)
    return whole

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
        """Take the next float32 values."""
        for name, dtypes in ROUNDINGS.items():
            rounded = values
            with np.errstate(over="ignore"):
                for dtype in dtypes:
                    rounded = rounded.astype(dtype).astype(FLOAT32)
            self._sha256[name].update(np.ascontiguousarray(rounded, FLOAT32).data)

    def digests(self) -> dict[str, str]:
        """Hexadecimal, by the names of `ROUNDINGS`. Values beyond a dtype's range make a digest that nothing has."""
        return {name: sha256.hexdigest() for name, sha256 in self._sha256.items()}

"""`QuantizedTensor`: the one type between every method and every container."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A weight matrix as codes and the parameters of its scheme, never packed.

        codes.shape == (rows, cols), uint8, below 2**scheme.bits
        arrays       the parameters that scheme.parameters(rows, cols) names, with these dtypes and shapes

    Raises:
        UnsupportedSpec: arrays that break one of these lines, or values that the scheme does not have.
        NonFiniteValues: a parameter that is NaN or infinite.
    """

    scheme: Scheme
    codes: np.ndarray
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8:
            raise UnsupportedSpec(f"codes must be uint8, are {self.codes.dtype}")
        expected = self.scheme.parameters(*self.shape)
        if set(expected) != set(self.arrays):
            raise UnsupportedSpec(f"{self.scheme} needs {', '.join(expected)}, got {', '.join(self.arrays)}")
        for name, (dtype, shape) in expected.items():
            found = self.arrays[name]
            if found.shape != shape or found.dtype != dtype:
                raise UnsupportedSpec(
                    f"codes {self.codes.shape} with {self.scheme} need {name} {shape} in {dtype}, "
                    f"got {found.shape} in {found.dtype}"
                )
        self.scheme.check(self.codes, self.arrays)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) = (out_features, in_features)."""
        rows, cols = self.codes.shape
        return rows, cols

    @property
    def scale(self) -> np.ndarray:
        """The scales, of a scheme that stores one per group: (rows, groups)."""
        return self.arrays["scale"]

    @property
    def zero(self) -> np.ndarray:
        """The zero points, of a scheme that stores them: uint8 (rows, groups)."""
        return self.arrays["zero"]

    def part(self, rows: slice) -> QuantizedTensor:
        """Some of the rows."""
        return QuantizedTensor(self.scheme, self.codes[rows], {name: x[rows] for name, x in self.arrays.items()})

    def numbers_digest(self) -> str:
        """SHA-256, hexadecimal, of the numbers that an engine computes with, whatever container holds them.

        Over the shape and what `Scheme.numbers` has. Two tensors of one digest have the same weights, level by level.
        """
        sha256 = hashlib.sha256(np.array(self.shape, "<i8").tobytes())
        for part in self.scheme.numbers(self.codes, self.arrays):
            sha256.update(np.ascontiguousarray(part).data)
        return sha256.hexdigest()

    def dequantized(self) -> np.ndarray:
        """The float32 weights (rows, cols) that an engine computes with."""
        return self.scheme.values(self.codes, self.arrays)

"""`QuantizedTensor`: the one type between every method and every container."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from quantkit.errors import NonFiniteValues, UnsupportedSpec
from quantkit.tensors.quant_spec import SCALE_DTYPES, QuantSpec


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A weight matrix as integer codes and group scales, never packed.

        weight ≈ scale * (codes - zero), each scale and zero repeated along its group of input columns
        codes.shape == (rows, cols), uint8, 0 <= codes < 2**bits
        scale.shape == zero.shape == (rows, groups), groups * group_width == cols
        scale.dtype == spec.scale_dtype, finite (a scale may be negative or zero)
        zero is uint8, 0 <= zero < 2**bits; all equal to 2**(bits - 1) when spec.symmetric

    Raises:
        UnsupportedSpec: arrays that break one of these lines.
        NonFiniteValues: a scale that is NaN or infinite.
    """

    spec: QuantSpec
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def __post_init__(self) -> None:
        rows, cols = self.codes.shape
        groups = (rows, self.spec.groups(cols))
        if self.scale.shape != groups or self.zero.shape != groups:
            raise UnsupportedSpec(
                f"codes {self.codes.shape} with {self.spec} need scales and zeros {groups}, "
                f"got {self.scale.shape} and {self.zero.shape}"
            )
        if self.codes.dtype != np.uint8 or self.zero.dtype != np.uint8:
            raise UnsupportedSpec(f"codes and zeros must be uint8, are {self.codes.dtype} and {self.zero.dtype}")
        if self.scale.dtype != SCALE_DTYPES[self.spec.scale_dtype]:
            raise UnsupportedSpec(f"scales must be {self.spec.scale_dtype}, are {self.scale.dtype}")
        if self.codes.size and max(int(self.codes.max()), int(self.zero.max())) >= self.spec.levels:
            raise UnsupportedSpec(
                f"a code or zero point exceeds {self.spec.levels - 1}, the largest of {self.spec.bits} bits"
            )
        if self.spec.symmetric and not (self.zero == self.spec.midpoint).all():
            raise UnsupportedSpec(f"symmetric int{self.spec.bits} has a zero point other than {self.spec.midpoint}")
        if not np.isfinite(self.scale.astype(np.float32)).all():
            raise NonFiniteValues("a quantization scale is NaN or infinite")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) = (out_features, in_features)."""
        rows, cols = self.codes.shape
        return rows, cols

    def part(self, rows: slice) -> QuantizedTensor:
        """Some of the rows."""
        return QuantizedTensor(self.spec, self.codes[rows], self.scale[rows], self.zero[rows])

    def numbers_digest(self) -> str:
        """SHA-256, hexadecimal, of the numbers that an engine computes with, whatever container holds them.

        Over the shape, then the codes, then of every group its scale and the value of code 0, both in little-endian
        float32. Two tensors of one digest have the same weights, code by code.
        """
        scale = self.scale.astype("<f4")
        sha256 = hashlib.sha256(np.array(self.shape, "<i8").tobytes())
        for part in (self.codes, scale, scale * -self.zero.astype("<f4")):
            sha256.update(np.ascontiguousarray(part).data)
        return sha256.hexdigest()

    def dequantized(self) -> np.ndarray:
        """scale * (codes - zero) in float32, (rows, cols); each value is one correctly rounded product."""
        rows, cols = self.shape
        grouped = self.codes.reshape(rows, self.scale.shape[1], -1).astype(np.float32)
        grouped -= self.zero.astype(np.float32)[:, :, None]
        grouped *= self.scale.astype(np.float32)[:, :, None]
        return grouped.reshape(rows, cols)

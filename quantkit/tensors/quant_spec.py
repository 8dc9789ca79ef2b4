"""`QuantSpec`: what a weight matrix becomes. Pure data with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.errors import UnsupportedSpec

SCALE_DTYPES: Mapping[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
PER_ROW = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """An affine grid of 2**bits levels per group of `group_size` consecutive input columns of one row.

    weight ≈ scale * (code - zero), code and zero in 0 .. 2**bits - 1.

    bits: 2 to 8.
    group_size: columns that share one scale; -1 = the whole row.
    symmetric: zero is always 2**(bits - 1).
    scale_dtype: scales are rounded to it BEFORE codes are chosen, so that every container holds the same values.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UnsupportedSpec(f"bits must be from 2 to 8, is {self.bits}")
        if self.group_size != PER_ROW and self.group_size < 1:
            raise UnsupportedSpec(f"group_size must be positive, or -1 for one group per row, is {self.group_size}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise UnsupportedSpec(f"scale_dtype must be one of {', '.join(SCALE_DTYPES)}, is {self.scale_dtype!r}")

    @property
    def levels(self) -> int:
        """Number of codes, 2**bits."""
        return int(2**self.bits)

    @property
    def midpoint(self) -> int:
        """The zero point of a symmetric grid, 2**(bits - 1)."""
        return int(2 ** (self.bits - 1))

    def group_width(self, cols: int) -> int:
        """Columns per group in a matrix of `cols` columns."""
        return cols if self.group_size == PER_ROW else self.group_size

    def groups(self, cols: int, *, name: str = "weight") -> int:
        """Groups per row; refuses widths that the group size does not divide."""
        width = self.group_width(cols)
        if cols % width:
            raise UnsupportedSpec(
                f"{name}: {cols} columns are not a multiple of group_size {width}",
                hint="choose a group_size that divides every layer's input width, or -1",
            )
        return cols // width

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `QuantSpec.from_json` inverts it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Inverse of `to_json`."""
        return cls(**data)

    def __str__(self) -> str:
        group = "row" if self.group_size == PER_ROW else f"g{self.group_size}"
        return f"int{self.bits} {group} {'sym' if self.symmetric else 'asym'}"

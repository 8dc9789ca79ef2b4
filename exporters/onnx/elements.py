"""Element types of ONNX tensors: their numbers in `TensorProto.DataType`, and their widths.

Source: onnx 1.23.2, `onnx/onnx.in.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Element:
    """code: the number of the type. bits: of one element; those below 8 are packed, the first in the lowest bits."""

    code: int
    bits: int

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor, rounded up to whole ones at its end."""
        return -(-math.prod(shape) * self.bits // 8)


FLOAT, FLOAT16 = Element(1, 32), Element(10, 16)
INT32, INT64, BOOL = Element(6, 32), Element(7, 64), Element(9, 8)
UINT8 = Element(2, 8)
UNSIGNED: Mapping[int, Element] = {2: Element(25, 2), 4: Element(21, 4), 8: UINT8}
SIGNED: Mapping[int, Element] = {2: Element(26, 2), 4: Element(22, 4), 8: Element(3, 8)}
"""Integers by their width."""
TYPES: Mapping[str, Element] = {"f32": FLOAT, "f16": FLOAT16}
"""What a graph computes in, by the names that users type."""
ARRAYS: Mapping[Element, np.dtype] = {FLOAT: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}

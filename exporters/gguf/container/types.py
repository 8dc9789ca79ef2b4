"""GGUF's numbers: types of metadata values, and every tensor type that ggml has. Source: `ggml.h`, `gguf.h`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from math import prod

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.values import LAYOUTS

ALIGNMENT = 32
"""Where tensors start unless `general.alignment` says otherwise."""


class ValueType(IntEnum):
    """Types of metadata values, in GGUF's numbers."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBERS: Mapping[int, np.dtype] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}

_OTHER_TYPES = (
    BlockType("Q8_1", 9, 32, 36),
    BlockType("Q8_K", 15, 256, 292),
    BlockType("IQ2_XXS", 16, 256, 66),
    BlockType("IQ2_XS", 17, 256, 74),
    BlockType("IQ3_XXS", 18, 256, 98),
    BlockType("IQ1_S", 19, 256, 50),
    BlockType("IQ3_S", 21, 256, 110),
    BlockType("IQ2_S", 22, 256, 82),
    BlockType("I8", 24, 1, 1),
    BlockType("I16", 25, 1, 2),
    BlockType("I32", 26, 1, 4),
    BlockType("I64", 27, 1, 8),
    BlockType("F64", 28, 1, 8),
    BlockType("IQ1_M", 29, 256, 56),
    BlockType("NVFP4", 40, 64, 36),
    BlockType("Q1_0", 41, 128, 18),
)
TYPES: Mapping[int, BlockType] = {
    block.id: block
    for block in (blocks.F32, blocks.F16, blocks.BF16, *blocks.QUANTIZED.values(), *LAYOUTS, *_OTHER_TYPES)
}
"""Every type that ggml has today; extents are checked for all, values are read for those of
`quantkit.exporters.gguf.blocks` and `quantkit.exporters.gguf.types`.
"""

REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
REMOVED_TYPES |= {36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}


def tensor_bytes(block: BlockType, shape: Sequence[int]) -> int:
    """Bytes of a tensor of numpy `shape` whose rows are whole blocks."""
    return prod(shape[:-1]) * block.row_bytes(shape[-1])


def padding(size: int, alignment: int = ALIGNMENT) -> int:
    """Zero bytes that follow `size` bytes up to the alignment."""
    return -size % alignment

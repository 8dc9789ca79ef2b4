"""ggml's block types: so many weights, their float16 scale, and for some a float16 minimum, in one run of bytes.

    F32 F16 BF16          plain little-endian values
    Q4_0  32   d, 16 bytes of nibbles           value = d * (code - 8)
    Q5_0  32   d, 4 bytes of fifth bits, 16     value = d * (code - 16)
    Q8_0  32   d, 32 signed bytes               value = d * (code - 128), stored as code - 128
    Q4_1  32   d, m, 16                         value = d * code + m
    Q5_1  32   d, m, 4, 16                      value = d * code + m
    Q2_0  64   d, 16 bytes of four codes        value = d * (code - 1), codes 0 to 3
    TQ2_0 256  64 bytes of four codes, d        value = d * (code - 1), codes 0 to 2
    TQ1_0 256  52 bytes of five codes, d        value = d * (code - 1), codes 0 to 2

The second column is the weights of a block. How codes lie in its bytes is told in `quantkit.tensors.packing`; the
layouts are those of ggml's `ggml-common.h`. What quantizes dense values is in `quantizers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.tensors import packing as bits

HALF = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class BlockType:
    """How ggml stores a run of weights.

    id: ggml's number. elements, nbytes: weights and bytes per block. bits: bits per code, 0 for plain floats and for
    the types of `quantkit.exporters.gguf.types`, which know their layouts themselves.
    offset: the code that stands for zero, None where the block has a minimum instead (and for plain floats).
    ternary: whether there are three codes only. scale_last: whether the scale follows the codes.
    """

    name: str
    id: int
    elements: int
    nbytes: int
    bits: int = 0
    offset: int | None = None
    ternary: bool = False
    scale_last: bool = False

    @property
    def has_minimum(self) -> bool:
        """Whether the value is d * code + m rather than d * (code - offset)."""
        return self.bits > 0 and self.offset is None

    @property
    def levels(self) -> int:
        """Number of codes, 2**bits or 3."""
        return 3 if self.ternary else int(2**self.bits)

    @property
    def fields(self) -> slice:
        """The bytes of scale and minimum."""
        size = HALF.itemsize * (2 if self.has_minimum else 1)
        return slice(-size, None) if self.scale_last else slice(0, size)

    @property
    def packed(self) -> slice:
        """The bytes of the codes."""
        size = HALF.itemsize * (2 if self.has_minimum else 1)
        return slice(0, -size) if self.scale_last else slice(size, None)

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights; `cols` is a multiple of `elements`."""
        return cols // self.elements * self.nbytes


F32 = BlockType("F32", 0, 1, 4)
F16 = BlockType("F16", 1, 1, 2)
BF16 = BlockType("BF16", 30, 1, 2)
Q4_0 = BlockType("Q4_0", 2, 32, 18, 4, 8)
Q4_1 = BlockType("Q4_1", 3, 32, 20, 4)
Q5_0 = BlockType("Q5_0", 6, 32, 22, 5, 16)
Q5_1 = BlockType("Q5_1", 7, 32, 24, 5)
Q8_0 = BlockType("Q8_0", 8, 32, 34, 8, 128)
TQ1_0 = BlockType("TQ1_0", 34, 256, 54, 2, 1, ternary=True, scale_last=True)
TQ2_0 = BlockType("TQ2_0", 35, 256, 66, 2, 1, ternary=True, scale_last=True)
Q2_0 = BlockType("Q2_0", 42, 64, 18, 2, 1)

QUANTIZED: Mapping[str, BlockType] = {block.name: block for block in (TQ1_0, TQ2_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)}
"""Smallest first."""


def pack(block: BlockType, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
    """Lay codes, scales and minimums out as blocks.

    Args:
        codes: uint8 (rows, cols), below block.levels; cols is a multiple of block.elements.
        scale: float16 (rows, cols // block.elements).
        minimum: of the same dtype and shape for types that have one, else None.

    Returns:
        uint8 (rows, block.row_bytes(cols)).
    """
    rows, cols = codes.shape
    packed = np.empty((rows, cols // block.elements, block.nbytes), np.uint8)
    store(block, codes.reshape(rows, -1, block.elements), scale, minimum, packed)
    return packed.reshape(rows, -1)


def unpack(block: BlockType, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Inverse of `pack`: uint8 (rows, bytes) to codes, scale and minimum (None for types without one).

    Bytes of strangers may hold code 3 in TQ2_0, which is 2 d to ggml.
    """
    rows = raw.shape[0]
    blocks = np.ascontiguousarray(raw).reshape(rows, -1, block.nbytes)
    codes = _CODES[block.name].unpack(blocks[..., block.packed])
    halves = fields(block, blocks).astype(np.float16)
    return codes.reshape(rows, -1), halves[..., 0], halves[..., 1] if block.has_minimum else None


def dequantize(block: BlockType, raw: np.ndarray) -> np.ndarray:
    """The float32 values (rows, cols) that quantized blocks uint8 (rows, bytes) stand for, as ggml computes them."""
    codes, scale, minimum = unpack(block, raw)
    rows, cols = codes.shape
    values = codes.reshape(rows, -1, block.elements).astype(np.float32)
    if minimum is None:
        values -= np.float32(block.offset or 0)
    values *= scale.astype(np.float32)[:, :, None]
    if minimum is not None:
        values += minimum.astype(np.float32)[:, :, None]
    return values.reshape(rows, cols)


def store(
    block: BlockType, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None, target: np.ndarray
) -> None:
    """Write codes (..., elements), scale (...) and minimum (...) into `target` (..., block.nbytes)."""
    halves = fields(block, target)
    halves[..., 0] = scale
    if minimum is not None:
        halves[..., 1] = minimum
    target[..., block.packed] = _CODES[block.name].pack(codes)


def fields(block: BlockType, blocks: np.ndarray) -> np.ndarray:
    """Scale and minimum of every block (..., nbytes) as float16 (..., 1 or 2), a view."""
    halves: np.ndarray = blocks[..., block.fields].view(HALF)
    return halves


@dataclass(frozen=True, slots=True)
class _Codes:
    """Codes (..., elements) to the bytes of a block that hold them, and back."""

    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


def _pack_five_bits(codes: np.ndarray) -> np.ndarray:
    nibbles = bits.pack_nibble_halves(bits.low_nibbles(codes))
    return np.concatenate((bits.pack_fifth_bits(codes), nibbles), axis=-1)


def _unpack_five_bits(packed: np.ndarray) -> np.ndarray:
    codes = bits.unpack_nibble_halves(packed[..., 4:])
    codes += bits.unpack_fifth_bits(packed[..., :4])
    return codes


def _shifted(codes: np.ndarray) -> np.ndarray:
    """0..255 to the bytes of -128..127, and back."""
    signed: np.ndarray = codes + np.uint8(128)  # wraps
    return signed


_NIBBLES = _Codes(bits.pack_nibble_halves, bits.unpack_nibble_halves)
_FIVE_BITS = _Codes(_pack_five_bits, _unpack_five_bits)
_CODES: Mapping[str, _Codes] = {
    "Q4_0": _NIBBLES,
    "Q4_1": _NIBBLES,
    "Q5_0": _FIVE_BITS,
    "Q5_1": _FIVE_BITS,
    "Q8_0": _Codes(_shifted, _shifted),
    "Q2_0": _Codes(bits.pack_pairs, bits.unpack_pairs),
    "TQ2_0": _Codes(bits.pack_quarters, bits.unpack_quarters),
    "TQ1_0": _Codes(bits.pack_trits, bits.unpack_trits),
}

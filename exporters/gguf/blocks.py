"""ggml's block types: 32 weights, their float16 scale, and for some a float16 minimum, in one run of bytes.

    F32 F16 BF16      plain little-endian values
    Q4_0  d, 16 bytes of nibbles           value = d * (code - 8)
    Q5_0  d, 4 bytes of fifth bits, 16     value = d * (code - 16)
    Q8_0  d, 32 signed bytes               value = d * (code - 128), stored as code - 128
    Q4_1  d, m, 16                         value = d * code + m
    Q5_1  d, m, 4, 16                      value = d * code + m

Layouts and quantizers are those of ggml's `ggml-common.h` and `quantize_row_*_ref`, byte for byte: the scale is
rounded to float16 only when it is stored, codes are chosen with the float32 one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.tensors import packing as bits

BLOCK = 32
"""Weights per block of every quantized type here."""

PIECE_BLOCKS = 4096
"""Blocks quantized at a time: their float32 values and scratch stay in a core's second-level cache."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How ggml stores a run of weights.

    id: ggml's number. elements, nbytes: weights and bytes per block. bits: bits per code, 0 for plain floats.
    offset: the code that stands for zero, None where the block has a minimum instead (and for plain floats).
    """

    name: str
    id: int
    elements: int
    nbytes: int
    bits: int = 0
    offset: int | None = None

    @property
    def has_minimum(self) -> bool:
        """Whether the value is d * code + m rather than d * (code - offset)."""
        return self.bits > 0 and self.offset is None

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights; `cols` is a multiple of `elements`."""
        return cols // self.elements * self.nbytes


F32 = BlockType("F32", 0, 1, 4)
F16 = BlockType("F16", 1, 1, 2)
BF16 = BlockType("BF16", 30, 1, 2)
Q4_0 = BlockType("Q4_0", 2, BLOCK, 18, 4, 8)
Q4_1 = BlockType("Q4_1", 3, BLOCK, 20, 4)
Q5_0 = BlockType("Q5_0", 6, BLOCK, 22, 5, 16)
Q5_1 = BlockType("Q5_1", 7, BLOCK, 24, 5)
Q8_0 = BlockType("Q8_0", 8, BLOCK, 34, 8, 128)

QUANTIZED: Mapping[str, BlockType] = {block.name: block for block in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)}


def pack(block: BlockType, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
    """Lay codes, scales and minimums out as blocks.

    Args:
        codes: uint8 (rows, cols), below 2**block.bits.
        scale: float16 (rows, cols // 32).
        minimum: float16 (rows, cols // 32) for types that have one, else None.

    Returns:
        uint8 (rows, block.row_bytes(cols)).
    """
    rows, cols = codes.shape
    packed = np.empty((rows, cols // BLOCK, block.nbytes), np.uint8)
    _store(block, codes.reshape(rows, -1, BLOCK), scale, minimum, packed)
    return packed.reshape(rows, -1)


def unpack(block: BlockType, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Inverse of `pack`: uint8 (rows, bytes) to codes, scale and minimum (None for types without one)."""
    rows = raw.shape[0]
    blocks = np.ascontiguousarray(raw).reshape(rows, -1, block.nbytes)
    if block is Q8_0:
        codes = blocks[..., 2:] + np.uint8(128)  # wraps: -128..127 to 0..255
    else:
        codes = bits.unpack_nibble_halves(blocks[..., -16:])
        if block.bits == 5:
            codes += bits.unpack_fifth_bits(blocks[..., -20:-16])
    fields = _halves(blocks).astype(np.float16)
    return codes.reshape(rows, -1), fields[..., 0], fields[..., 1] if block.has_minimum else None


def dequantize(block: BlockType, raw: np.ndarray) -> np.ndarray:
    """The float32 values (rows, cols) that quantized blocks uint8 (rows, bytes) stand for, as ggml computes them."""
    codes, scale, minimum = unpack(block, raw)
    rows, cols = codes.shape
    values = codes.reshape(rows, -1, BLOCK).astype(np.float32)
    if minimum is None:
        values -= np.float32(block.offset or 0)
    values *= scale.astype(np.float32)[:, :, None]
    if minimum is not None:
        values += minimum.astype(np.float32)[:, :, None]
    return values.reshape(rows, cols)


def quantize(name: str, block: BlockType, values: np.ndarray) -> np.ndarray:
    """Quantize finite `values` (rows, cols) of any float dtype as ggml's reference quantizer does.

    Args:
        name: the tensor's name, for errors.
        block: a quantized type; cols is a multiple of 32.
        values: taken to float32 piece by piece, so that nothing larger than a piece is allocated but the result.

    Returns:
        uint8 (rows, block.row_bytes(cols)).

    Raises:
        NonFiniteValues: NaN or infinity among the values.
        ValueOutOfRange: a scale or minimum beyond float16.
    """
    rows, cols = values.shape
    blocks = values.reshape(-1, BLOCK)
    packed = np.empty((len(blocks), block.nbytes), np.uint8)
    step = min(PIECE_BLOCKS, max(1, len(blocks)))
    piece, scratch = np.empty((step, BLOCK), np.float32), np.empty((step, BLOCK), np.float32)
    quantizer = _QUANTIZERS[block.name]
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        x = piece[: len(part)]
        np.copyto(x, part)
        target = packed[start : start + step]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            quantizer(name, x, scratch[: len(part)], target)
    return packed.reshape(rows, block.row_bytes(cols))


def _quantize_q8_0(name: str, x: np.ndarray, scratch: np.ndarray, target: np.ndarray) -> None:
    """d = max|x| / 127, code = x / d rounded half away from zero. `x` is overwritten."""
    np.abs(x, out=scratch)
    largest = _checked_largest(name, bits.block_maxima(scratch))
    d = largest / np.float32(127)
    np.multiply(x, _inverse(d), out=x)
    # Truncation after adding the float below one half is rounding half away from zero; 0.5 itself would take
    # 0.49999997 up to 1.
    bits.with_sign_of(x, np.nextafter(np.float32(0.5), np.float32(0)), out=scratch)
    np.add(x, scratch, out=x)
    np.copyto(target[:, 2:].view(np.int8), x, casting="unsafe")
    _halves(target)[:, 0] = _half_floats(name, Q8_0, d[:, 0])


def _quantize_symmetric(block: BlockType) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]:
    """Q4_0 and Q5_0: the value of largest magnitude (the first of equals) becomes code 0, d = that / -offset."""
    offset = block.offset or 0

    def quantizer(name: str, x: np.ndarray, scratch: np.ndarray, target: np.ndarray) -> None:
        np.abs(x, out=scratch)
        extreme = np.take_along_axis(x, scratch.argmax(axis=1, keepdims=True), axis=1)
        extreme += np.float32(0)  # a block of zeros of either sign has d = +0 / -offset in ggml
        d = _checked_largest(name, extreme) / np.float32(-offset)
        np.multiply(x, _inverse(d), out=x)
        np.add(x, np.float32(offset + 0.5), out=x)
        codes = np.minimum(x, np.float32(2**block.bits - 1), out=x).astype(np.uint8)
        _store(block, codes, _half_floats(name, block, d[:, 0]), None, target)

    return quantizer


def _quantize_with_minimum(block: BlockType) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]:
    """Q4_1 and Q5_1: m = min x, d = (max x - min x) / (levels - 1), code = (x - m) / d rounded half up."""
    levels = np.float32(2**block.bits - 1)

    def quantizer(name: str, x: np.ndarray, _scratch: np.ndarray, target: np.ndarray) -> None:
        # The first of equals, as in ggml: x.min() would pick the sign of zero by the processor's vector width.
        minimum = _checked_largest(name, np.take_along_axis(x, x.argmin(axis=1, keepdims=True), axis=1))
        maximum = _checked_largest(name, np.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1))
        d = (maximum - minimum) / levels
        np.subtract(x, minimum, out=x)
        np.multiply(x, _inverse(d), out=x)
        np.add(x, np.float32(0.5), out=x)
        codes = np.minimum(x, levels, out=x).astype(np.uint8)
        m = _half_floats(name, block, minimum[:, 0])
        _store(block, codes, _half_floats(name, block, d[:, 0]), m, target)

    return quantizer


_QUANTIZERS: Mapping[str, Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]] = {
    "Q8_0": _quantize_q8_0,
    **{block.name: _quantize_symmetric(block) for block in (Q4_0, Q5_0)},
    **{block.name: _quantize_with_minimum(block) for block in (Q4_1, Q5_1)},
}


def _store(
    block: BlockType, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None, target: np.ndarray
) -> None:
    """Write codes (..., 32), scale (...) and minimum (...) into `target` (..., block.nbytes)."""
    fields = _halves(target)
    fields[..., 0] = scale
    if minimum is not None:
        fields[..., 1] = minimum
    if block is Q8_0:
        np.subtract(codes, np.uint8(128), out=target[..., 2:])  # wraps: 0..255 to the bytes of -128..127
        return
    target[..., -16:] = bits.pack_nibble_halves(bits.low_nibbles(codes))
    if block.bits == 5:
        target[..., -20:-16] = bits.pack_fifth_bits(codes)


def _halves(blocks: np.ndarray) -> np.ndarray:
    """The first four bytes of every block (..., nbytes) as two float16, a view."""
    halves: np.ndarray = blocks[..., :4].view(np.dtype("<f2"))
    return halves


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d in float32; 0 where d is 0, or so small that float16 stores 0 and the quotient would be infinite."""
    inverse: np.ndarray = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _checked_largest(name: str, largest: np.ndarray) -> np.ndarray:
    if not np.isfinite(largest).all():
        raise NonFiniteValues(
            f"tensor {name!r} has NaN or infinite values",
            hint="the source is damaged or was trained into overflow; use a sound one",
        )
    return largest


def _half_floats(name: str, block: BlockType, values: np.ndarray) -> np.ndarray:
    halves: np.ndarray = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueOutOfRange(
            f"tensor {name!r}: a {block.name} scale or minimum exceeds float16's 65504",
            hint="write bf16 or f32, which reach further",
        )
    return halves

"""ggml's reference quantizers: dense values to blocks of 32, byte for byte as `quantize_row_*_ref` makes them.

The scale is rounded to float16 only when it is stored, codes are chosen with the float32 one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.exporters.gguf.blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BlockType, fields, store
from quantkit.tensors import packing as bits

BLOCK = 32
"""Weights per block of every type that has a quantizer here."""

PIECE_BLOCKS = 4096
"""Blocks quantized at a time: their float32 values and scratch stay in a core's second-level cache."""


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
    largest = finite(name, bits.block_maxima(scratch))
    d = largest / np.float32(127)
    np.multiply(x, _inverse(d), out=x)
    # Truncation after adding the float below one half is rounding half away from zero; 0.5 itself would take
    # 0.49999997 up to 1.
    bits.with_sign_of(x, np.nextafter(np.float32(0.5), np.float32(0)), out=scratch)
    np.add(x, scratch, out=x)
    np.copyto(target[:, 2:].view(np.int8), x, casting="unsafe")
    fields(Q8_0, target)[:, 0] = half_floats(name, Q8_0, d[:, 0])


def _quantize_symmetric(block: BlockType) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]:
    """Q4_0 and Q5_0: the value of largest magnitude (the first of equals) becomes code 0, d = that / -offset."""
    offset = block.offset or 0

    def quantizer(name: str, x: np.ndarray, scratch: np.ndarray, target: np.ndarray) -> None:
        extreme = finite(name, _first_extremes(x, scratch))
        extreme += np.float32(0)  # a block of zeros of either sign has d = +0 / -offset in ggml
        d = extreme / np.float32(-offset)
        inverse = _inverse(d)
        np.multiply(x, inverse, out=x)
        np.add(x, np.float32(offset + 0.5), out=x)
        codes = np.minimum(x, np.float32(2**block.bits - 1), out=x).astype(np.uint8)
        codes[(inverse == 0)[:, 0] & (d != 0)[:, 0]] = 0  # what infinity and NaN become in C
        store(block, codes, half_floats(name, block, d[:, 0]), None, target)

    return quantizer


def _quantize_with_minimum(block: BlockType) -> Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]:
    """Q4_1 and Q5_1: m = min x, d = (max x - min x) / (levels - 1), code = (x - m) / d rounded half up."""
    levels = np.float32(2**block.bits - 1)

    def quantizer(name: str, x: np.ndarray, _scratch: np.ndarray, target: np.ndarray) -> None:
        # The first of equals, as in ggml: x.min() would pick the sign of zero by the processor's vector width.
        minimum = finite(name, np.take_along_axis(x, x.argmin(axis=1, keepdims=True), axis=1))
        maximum = finite(name, np.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1))
        d = (maximum - minimum) / levels
        np.subtract(x, minimum, out=x)
        np.multiply(x, _inverse(d), out=x)
        np.add(x, np.float32(0.5), out=x)
        codes = np.minimum(x, levels, out=x).astype(np.uint8)
        m = half_floats(name, block, minimum[:, 0])
        store(block, codes, half_floats(name, block, d[:, 0]), m, target)

    return quantizer


_QUANTIZERS: Mapping[str, Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]] = {
    "Q8_0": _quantize_q8_0,
    **{block.name: _quantize_symmetric(block) for block in (Q4_0, Q5_0)},
    **{block.name: _quantize_with_minimum(block) for block in (Q4_1, Q5_1)},
}


def _first_extremes(x: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """Of every block (n, 32) the value of largest magnitude, the first of equals: (n, 1); NaN where there is one.

    Bit patterns that are rotated by one order by magnitude, then by sign, and the largest of integers is found faster
    than the place of a float. Only where a value and its opposite are both largest does their order decide.
    """
    patterns = scratch.view(np.uint32)
    np.left_shift(x.view(np.uint32), np.uint32(1), out=patterns)
    patterns |= np.signbit(x)
    largest = bits.block_maxima(scratch).view(np.uint32)
    extremes: np.ndarray = (largest >> np.uint32(1) | largest << np.uint32(31)).view(np.float32)
    opposite = (patterns == (largest ^ np.uint32(1))).view(np.uint64)  # eight places in one word
    torn = np.flatnonzero(opposite[:, 0] | opposite[:, 1] | opposite[:, 2] | opposite[:, 3])
    places = np.abs(x[torn]).argmax(axis=1, keepdims=True)
    extremes[torn] = np.take_along_axis(x[torn], places, axis=1)
    return extremes


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d in float32; 0 where d is 0, or so small that float16 stores 0 and the quotient would be infinite."""
    inverse: np.ndarray = np.float32(1) / d
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """`values`; raises `NonFiniteValues` for NaN or infinity among them."""
    if not np.isfinite(values).all():
        raise NonFiniteValues(
            f"tensor {name!r} has NaN or infinite values",
            hint="the source is damaged or was trained into overflow; use a sound one",
        )
    return values


def half_floats(name: str, block: BlockType, values: np.ndarray) -> np.ndarray:
    """Scales or minimums as float16; raises `ValueOutOfRange` for one beyond it."""
    halves: np.ndarray = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueOutOfRange(
            f"tensor {name!r}: a {block.name} scale or minimum exceeds float16's 65504",
            hint="write bf16 or f32, which reach further",
        )
    return halves

"""K-quants: super-blocks of 256 weights in sub-blocks, whose scales and minimums are integers times a float16.

    Q2_K  scales[16], codes[64], d, dmin        value = d * s * code - dmin * m, of 16 weights; s and m share a byte
    Q3_K  high[32], codes[64], scales[12], d    value = d * (s - 32) * (code - 4), of 16 weights
    Q4_K  d, dmin, scales[12], codes[128]       value = d * s * code - dmin * m, of 32 weights
    Q5_K  d, dmin, scales[12], high[32], codes[128]      the same, codes of five bits
    Q6_K  low[128], high[64], scales[16], d     value = d * s * (code - 32), of 16 weights; s is signed

Two bits of weight 128 h + 32 a + l lie in byte 32 h + l, four of 64 p + 32 b + l in byte 32 p + l, from bit 2 a or 4 b
on; a highest bit of weight 32 a + l is bit a of byte l. Source: `ggml-common.h`, `dequantize_row_*` of `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.parts import Layout, Parts, half_bytes, halves
from quantkit.tensors import packing as bits

SIZE = 256
"""Weights of a super-block."""

Q2_K = BlockType("Q2_K", 10, SIZE, 84)
Q3_K = BlockType("Q3_K", 11, SIZE, 110)
Q4_K = BlockType("Q4_K", 12, SIZE, 144)
Q5_K = BlockType("Q5_K", 13, SIZE, 176)
Q6_K = BlockType("Q6_K", 14, SIZE, 210)


def _pack_nibbles(codes: np.ndarray, run: int) -> np.ndarray:
    """Low four bits, those of `run` / 2 weights and the next `run` / 2 in one run of bytes."""
    n = len(codes)
    return bits.pack_nibble_halves(bits.low_nibbles(codes).reshape(n, -1, run)).reshape(n, -1)


def _unpack_nibbles(packed: np.ndarray, run: int) -> np.ndarray:
    n = len(packed)
    return bits.unpack_nibble_halves(packed.reshape(n, -1, run // 2)).reshape(n, -1)


def _pack_highest(highest: np.ndarray) -> np.ndarray:
    """0 or not (n, 256) to bytes (n, 32): bit a of byte l is weight 32 a + l."""
    return np.packbits(highest.reshape(len(highest), 8, 32), axis=1, bitorder="little")[:, 0]


def _unpack_highest(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed[:, None], axis=1, bitorder="little").reshape(len(packed), SIZE)


def _repeated(values: np.ndarray, run: int) -> np.ndarray:
    return np.repeat(values, run, axis=1)


def _products(d: np.ndarray, integers: np.ndarray, offset: int = 0) -> np.ndarray:
    """float16 (n) times integers (n, k) - offset, in float32."""
    products: np.ndarray = d.astype(np.float32)[:, None] * (integers.astype(np.float32) - np.float32(offset))
    return products


def _with_minimum(parts: Parts) -> np.ndarray:
    assert parts.scales is not None
    assert parts.mins is not None
    assert parts.dmin is not None
    run = SIZE // parts.scales.shape[1]
    values = _repeated(_products(parts.d, parts.scales), run)
    values *= parts.codes
    values -= _repeated(_products(parts.dmin, parts.mins), run)
    return values


def _symmetric(parts: Parts, scale_offset: int, code_offset: int) -> np.ndarray:
    assert parts.scales is not None
    values = _repeated(_products(parts.d, parts.scales, scale_offset), SIZE // parts.scales.shape[1])
    values *= parts.codes.astype(np.float32) - np.float32(code_offset)
    return values


def _pack_q2_k(parts: Parts) -> np.ndarray:
    assert parts.scales is not None
    assert parts.mins is not None
    assert parts.dmin is not None
    scales = parts.scales | parts.mins << np.uint8(4)
    codes = bits.pack_quarters(parts.codes)
    return np.concatenate((scales, codes, half_bytes(parts.d), half_bytes(parts.dmin)), axis=1)


def _unpack_q2_k(raw: np.ndarray) -> Parts:
    return Parts(
        codes=bits.unpack_quarters(raw[:, 16:80]),
        scales=raw[:, :16] & np.uint8(15),
        mins=raw[:, :16] >> np.uint8(4),
        d=halves(raw, 80),
        dmin=halves(raw, 82),
    )


def _pack_q3_k(parts: Parts) -> np.ndarray:
    """Of 16 scales of six bits the low four are paired with those eight further on, the high two with every fourth."""
    assert parts.scales is not None
    n = len(parts.codes)
    low = bits.pack_nibble_halves(parts.scales & np.uint8(15))
    high = (parts.scales >> np.uint8(4)).reshape(n, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.concatenate(
        (
            _pack_highest(parts.codes & np.uint8(4)),
            bits.pack_quarters(parts.codes & np.uint8(3)),
            low,
            np.bitwise_or.reduce(high, axis=1),
            half_bytes(parts.d),
        ),
        axis=1,
    )


def _unpack_q3_k(raw: np.ndarray) -> Parts:
    codes = bits.unpack_quarters(raw[:, 32:96])
    codes |= _unpack_highest(raw[:, :32]) << np.uint8(2)
    high = raw[:, 104:108, None].swapaxes(1, 2) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    scales = bits.unpack_nibble_halves(raw[:, 96:104]) | high.reshape(len(raw), 16) << np.uint8(4)
    return Parts(codes=codes, scales=scales, d=halves(raw, 108))


def _pack_six_bits(parts: Parts) -> np.ndarray:
    """d, dmin and eight scales and minimums: four of each as they are, whose high bits hold those of the next four."""
    assert parts.scales is not None
    assert parts.mins is not None
    assert parts.dmin is not None
    low, high = np.uint8(15), np.uint8(4)
    scales, mins = parts.scales, parts.mins
    return np.concatenate(
        (
            half_bytes(parts.d),
            half_bytes(parts.dmin),
            scales[:, :4] | scales[:, 4:] >> high << np.uint8(6),
            mins[:, :4] | mins[:, 4:] >> high << np.uint8(6),
            (scales[:, 4:] & low) | (mins[:, 4:] & low) << high,
        ),
        axis=1,
    )


def _unpack_six_bits(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minimums, uint8 (n, 8) each."""
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    six, two, four = np.uint8(63), np.uint8(6), np.uint8(4)
    scales = np.concatenate((first & six, (third & np.uint8(15)) | first >> two << four), axis=1)
    mins = np.concatenate((second & six, third >> four | second >> two << four), axis=1)
    return scales, mins


def _pack_q4_k(parts: Parts) -> np.ndarray:
    return np.concatenate((_pack_six_bits(parts), _pack_nibbles(parts.codes, 64)), axis=1)


def _unpack_q4_k(raw: np.ndarray) -> Parts:
    scales, mins = _unpack_six_bits(raw)
    return Parts(
        codes=_unpack_nibbles(raw[:, 16:], 64), scales=scales, mins=mins, d=halves(raw, 0), dmin=halves(raw, 2)
    )


def _pack_q5_k(parts: Parts) -> np.ndarray:
    highest = _pack_highest(parts.codes & np.uint8(16))
    return np.concatenate((_pack_six_bits(parts), highest, _pack_nibbles(parts.codes, 64)), axis=1)


def _unpack_q5_k(raw: np.ndarray) -> Parts:
    scales, mins = _unpack_six_bits(raw)
    codes = _unpack_nibbles(raw[:, 48:], 64) | _unpack_highest(raw[:, 16:48]) << np.uint8(4)
    return Parts(codes=codes, scales=scales, mins=mins, d=halves(raw, 0), dmin=halves(raw, 2))


def _pack_q6_k(parts: Parts) -> np.ndarray:
    assert parts.scales is not None
    high = bits.pack_quarters(parts.codes >> np.uint8(4))
    return np.concatenate(
        (_pack_nibbles(parts.codes, 128), high, parts.scales.view(np.uint8), half_bytes(parts.d)), axis=1
    )


def _unpack_q6_k(raw: np.ndarray) -> Parts:
    codes = _unpack_nibbles(raw[:, :128], 128) | bits.unpack_quarters(raw[:, 128:192]) << np.uint8(4)
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8)
    return Parts(codes=codes, scales=scales, d=halves(raw, 208))


LAYOUTS: Mapping[BlockType, Layout] = {
    layout.block: layout
    for layout in (
        Layout(Q2_K, 16, _pack_q2_k, _unpack_q2_k, _with_minimum),
        Layout(Q3_K, 16, _pack_q3_k, _unpack_q3_k, lambda parts: _symmetric(parts, 32, 4)),
        Layout(Q4_K, 32, _pack_q4_k, _unpack_q4_k, _with_minimum),
        Layout(Q5_K, 32, _pack_q5_k, _unpack_q5_k, _with_minimum),
        Layout(Q6_K, 16, _pack_q6_k, _unpack_q6_k, lambda parts: _symmetric(parts, 0, 32)),
    )
}

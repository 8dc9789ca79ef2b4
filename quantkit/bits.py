"""Bit layouts: the only file with shifts and masks.

Every packer has its inverse beside it, and every pair is a bijection on codes below 2**bits.
Words are little-endian; "LSB first" means that element 0 sits in the lowest bits.
"""

from __future__ import annotations

import numpy as np


def pack_bitstream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes (rows, n) as one LSB-first bitstream per row: uint32 (rows, ceil(n * bits / 32)).

    Element i of a row starts at bit i * bits. This is compressed-tensors' `pack_to_int32`, GPTQ's column stream
    (on transposed codes) and MLX's row stream.
    """
    rows, count = codes.shape
    words = -(-count * bits // 32)
    if 32 % bits == 0:
        per_word = 32 // bits
        padded = np.zeros((rows, words * per_word), np.uint32)
        padded[:, :count] = codes
        shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
        packed: np.ndarray = np.bitwise_or.reduce(padded.reshape(rows, words, per_word) << shifts, axis=2)
        return packed
    unpacked = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little").reshape(rows, -1)
    padded_bits = np.zeros((rows, words * 32), np.uint8)
    padded_bits[:, : count * bits] = unpacked
    stream = np.packbits(padded_bits, axis=1, bitorder="little")
    return stream.view("<u4").astype(np.uint32, copy=False)


def unpack_bitstream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Inverse of `pack_bitstream`: uint32 or int32 (rows, w) to uint8 codes (rows, count)."""
    rows = words.shape[0]
    words = np.ascontiguousarray(words).view(np.uint32)
    if 32 % bits == 0:
        shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
        spread = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
        return spread.astype(np.uint8).reshape(rows, -1)[:, :count]
    stream = np.unpackbits(words.astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little")
    fields = stream[:, : count * bits].reshape(rows, count, bits)
    return np.packbits(fields, axis=2, bitorder="little")[:, :, 0]


def pack_nibble_halves(codes: np.ndarray) -> np.ndarray:
    """GGUF's 4-bit block: codes (..., 32) to bytes (..., 16), byte j = code j | code j+16 << 4."""
    half = codes.shape[-1] // 2
    packed: np.ndarray = codes[..., :half] | (codes[..., half:] << np.uint8(4))
    return packed


def unpack_nibble_halves(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_nibble_halves`: bytes (..., 16) to codes (..., 32)."""
    return np.concatenate((packed & np.uint8(15), packed >> np.uint8(4)), axis=-1)


def pack_fifth_bits(codes: np.ndarray) -> np.ndarray:
    """GGUF's Q5 high bits: codes (..., 32) to 4 bytes (..., 4), bit j of the little-endian word = bit 4 of code j."""
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def unpack_fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_fifth_bits`, already shifted: bytes (..., 4) to 0 or 16 (..., 32)."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def low_nibbles(codes: np.ndarray) -> np.ndarray:
    """The lowest four bits of every code."""
    low: np.ndarray = codes & np.uint8(15)
    return low

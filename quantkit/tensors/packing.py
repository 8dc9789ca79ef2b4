"""Bit layouts: the only file with shifts and masks.

Every packer has its inverse beside it, and every pair is a bijection on codes below 2**bits.
Words are little-endian; "LSB first" means that element 0 sits in the lowest bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def pack_bitstream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes (rows, n) as one LSB-first bitstream per row: uint32 (rows, ceil(n * bits / 32)).

    Element i of a row starts at bit i * bits. This is compressed-tensors' `pack_to_int32`, GPTQ's column stream
    (on transposed codes) and MLX's row stream.
    """
    rows, count = codes.shape
    words = -(-count * bits // 32)
    places, width = _places(bits)
    runs = -(-words * 4 // width)
    padded = codes
    if count != runs * len(places):
        padded = np.zeros((rows, runs * len(places)), np.uint8)
        padded[:, :count] = codes
    if bits in _HALVINGS:
        return _joined(padded, bits).view("<u4").reshape(rows, words).astype(np.uint32, copy=False)
    stream = np.zeros((rows, runs, width), np.uint8)
    for place, (byte, shift) in enumerate(places):
        field = padded[:, place :: len(places)]
        stream[:, :, byte] |= field << np.uint8(shift)
        if shift + bits > 8:
            stream[:, :, byte + 1] |= field >> np.uint8(8 - shift)
    whole = np.ascontiguousarray(stream.reshape(rows, -1)[:, : words * 4])
    packed: np.ndarray = whole.view("<u4").astype(np.uint32, copy=False)
    return packed


def unpack_bitstream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Inverse of `pack_bitstream`: uint32 or int32 (rows, w) to uint8 codes (rows, count)."""
    rows = words.shape[0]
    whole = np.ascontiguousarray(words).view(np.uint32).astype("<u4", copy=False).view(np.uint8)
    if bits in _HALVINGS:
        return np.ascontiguousarray(_parted(whole, bits).reshape(rows, -1)[:, :count])
    places, width = _places(bits)
    runs = -(-count // len(places))
    stream = whole[:, : runs * width]
    if stream.shape[1] != runs * width:
        stream = np.zeros((rows, runs * width), np.uint8)
        stream[:, : whole.shape[1]] = whole
    stream = stream.reshape(rows, runs, width)
    codes = np.empty((rows, runs * len(places)), np.uint8)
    for place, (byte, shift) in enumerate(places):
        field = stream[:, :, byte] >> np.uint8(shift)
        if shift + bits > 8:
            field |= stream[:, :, byte + 1] << np.uint8(8 - shift)
        codes[:, place :: len(places)] = field & np.uint8(2**bits - 1)
    return np.ascontiguousarray(codes[:, :count])


def _places(bits: int) -> tuple[list[tuple[int, int]], int]:
    """The shortest run of codes that fills whole bytes: byte and first bit of each code, and the bytes of the run."""
    width = bits // math.gcd(8, bits)
    return [divmod(first, 8) for first in range(0, width * 8, bits)], width


_HALVINGS: Mapping[int, tuple[np.dtype, tuple[tuple[int, int], ...]]] = {
    4: (np.dtype("<u2"), ((4, 0x0F0F),)),
    2: (np.dtype("<u4"), ((12, 0x000F000F), (6, 0x03030303))),
}
"""A byte of several codes as an integer of a byte for each: by how far each half is moved, and what is kept of it."""
_IN_CACHE, _ROWS_IN_CACHE = 1 << 16, 8
"""Bytes, and rows of words, that are worked on at a time, in a core's cache: that is ten times as fast."""


def _parted(data: np.ndarray, bits: int) -> np.ndarray:
    """Bytes as their codes, the lowest bits first: uint8, 8 / bits for each byte."""
    wide, halvings = _HALVINGS[bits]
    flat = data.reshape(-1)
    parted = np.empty(flat.size, wide)
    for start in range(0, flat.size, _IN_CACHE):
        run = parted[start : start + _IN_CACHE]
        run[...] = flat[start : start + _IN_CACHE]
        for distance, mask in halvings:
            run |= run << wide.type(distance)
            run &= wide.type(mask)
    return parted.view(np.uint8)


def _joined(codes: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `_parted`, for whole bytes of codes."""
    wide, halvings = _HALVINGS[bits]
    flat = np.ascontiguousarray(codes).reshape(-1).view(wide)
    joined = np.empty(flat.size, np.uint8)
    masks = [0xFF, *(mask for _, mask in halvings[:-1])]
    for start in range(0, flat.size, _IN_CACHE):
        run = flat[start : start + _IN_CACHE]
        for (distance, _), mask in zip(reversed(halvings), reversed(masks), strict=True):
            run = (run | run >> wide.type(distance)) & wide.type(mask)
        joined[start : start + _IN_CACHE] = run
    return joined


def pack_adjacent_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (n, k), n a multiple of m = 32 / bits, to uint32 (n / m, k).

    Bits i * bits and following of word [r, c] are codes[r * m + i, c]. bits: 2, 4 or 8.
    """
    apart = codes.reshape(-1, 32 // bits, codes.shape[1])
    words = np.empty((len(apart), codes.shape[1]), np.uint32)
    for start in range(0, len(words), _ROWS_IN_CACHE):
        run = words[start : start + _ROWS_IN_CACHE]
        run[...] = apart[start : start + _ROWS_IN_CACHE, 0]
        for place in range(1, 32 // bits):
            run |= apart[start : start + _ROWS_IN_CACHE, place].astype(np.uint32) << np.uint32(place * bits)
    return words


def unpack_adjacent_rows(words: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `pack_adjacent_rows`: uint32 (n, k) to uint8 codes (n * 32 / bits, k)."""
    apart = np.empty((len(words), 32 // bits, words.shape[1]), np.uint8)
    mask = np.uint32(2**bits - 1)
    for start in range(0, len(words), _ROWS_IN_CACHE):
        run = words[start : start + _ROWS_IN_CACHE]
        for place in range(32 // bits):
            apart[start : start + _ROWS_IN_CACHE, place] = run >> np.uint32(place * bits) & mask
    return apart.reshape(-1, words.shape[1])


def pack_strided_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """BitNet's order in transformers: codes (n, k), n a multiple of 8 / bits, to bytes (n * bits / 8, k).

    Bits i * bits and following of byte [r, c] are codes[i * n * bits / 8 + r, c]. bits: 1, 2 or 4.
    """
    strides = codes.reshape(8 // bits, -1, codes.shape[1])
    packed: np.ndarray = strides[0].copy()
    for place, stride in enumerate(strides[1:], 1):
        packed |= stride << np.uint8(place * bits)
    return packed


def unpack_strided_rows(packed: np.ndarray, bits: int) -> np.ndarray:
    """Inverse of `pack_strided_rows`: uint8 (n * bits / 8, k) to uint8 codes (n, k)."""
    mask = np.uint8(2**bits - 1)
    return np.concatenate([packed >> np.uint8(first) & mask for first in range(0, 8, bits)])


def pack_marlin(codes: np.ndarray) -> np.ndarray:
    """Marlin's order of 4-bit codes: codes (n, k), n % 64 == 0 and k % 16 == 0, to uint32 (k / 16, 2 * n).

    Nibble i of word [kt, w] is codes[n, k] with t = w // 4 % 32 the lane of a warp that loads the word, and
        j = 0 2 4 6 1 3 5 7 at i,  k = 16 kt + 2 (t % 4) + (0 1 8 9 at j % 4),
        n = 64 (w // 128) + 16 (w % 4) + t // 4 + 8 (j // 4)
    which is the B fragment of `mma.m16n8k16`, for the two halves of 16 columns at once. In bits that is
        n = nt | wp:2 | high:1 | t // 4:3,  k = kt | khigh:1 | t % 4:2 | klow:1,  i = klow:1 | high:1 | khigh:1
    so the order is a transposition of these fields; the steps below do it with elements as wide as possible.
    Source: Frantar et al. 2024 (Marlin), `marlin/__init__.py`; vLLM `gptq_marlin_repack.cu` packs alike.
    """
    rows, cols = codes.shape
    halves = np.ascontiguousarray(codes).view(np.uint64).reshape(rows, cols // 16, 2)
    nibbles = halves[..., 0] | halves[..., 1] << np.uint64(4)  # per byte; a byte is t % 4 | klow
    parts = nibbles.reshape(rows // 64, 4, 2, 8, cols // 16)  # nt, wp, high, t // 4, kt
    paired = np.empty((*parts.shape[:2], 8, cols), np.uint8)
    paired[..., 0::2] = np.ascontiguousarray(parts[:, :, 0]).view(np.uint8)
    paired[..., 1::2] = np.ascontiguousarray(parts[:, :, 1]).view(np.uint8)
    words = paired.view("<u4").reshape(rows // 64, 4, 8, cols // 16, 4)  # nt, wp, t // 4, kt, t % 4
    packed = np.ascontiguousarray(words.transpose(3, 0, 2, 4, 1)).reshape(cols // 16, 2 * rows)
    return packed.astype(np.uint32, copy=False)


def unpack_marlin(words: np.ndarray) -> np.ndarray:
    """Inverse of `pack_marlin`: uint32 or int32 (k / 16, 2 * n) to uint8 codes (n, k)."""
    tiles, rows = words.shape[0], words.shape[1] // 2
    fields = np.ascontiguousarray(words).view(np.uint32).astype("<u4", copy=False)
    fields = fields.reshape(tiles, rows // 64, 8, 4, 4).transpose(1, 4, 2, 0, 3)  # nt, wp, t // 4, kt, t % 4
    paired = np.ascontiguousarray(fields).view(np.uint8).reshape(rows // 64, 4, 8, 16 * tiles)
    parts = np.stack((paired[..., 0::2], paired[..., 1::2]), axis=2)  # nt, wp, high, t // 4, bytes t % 4 | klow
    nibbles = parts.view(np.uint64).reshape(rows, tiles)
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    halves = np.stack((nibbles & low, nibbles >> np.uint64(4) & low), axis=-1)
    return halves.view(np.uint8).reshape(rows, 16 * tiles)


def pack_nibble_halves(codes: np.ndarray) -> np.ndarray:
    """GGUF's 4-bit block: codes (..., n) below 16, n % 16 == 0, to bytes (..., n / 2), code j | code j + n/2 << 4.

    Eight bytes are made at a time: no bit of a code leaves its byte.
    """
    words = np.ascontiguousarray(codes).view(np.uint64).reshape(-1, 2, codes.shape[-1] // 16)
    packed = np.empty((len(words), words.shape[2]), np.uint64)
    for place in range(words.shape[2]):
        np.left_shift(words[:, 1, place], np.uint64(4), out=packed[:, place])
        packed[:, place] |= words[:, 0, place]
    return packed.view(np.uint8).reshape(*codes.shape[:-1], -1)


def unpack_nibble_halves(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_nibble_halves`: bytes (..., n / 2) to codes (..., n)."""
    words = np.ascontiguousarray(packed).view(np.uint64).reshape(-1, packed.shape[-1] // 8)
    codes = np.empty((len(words), 2, words.shape[1]), np.uint64)
    codes[:, 0] = words
    np.right_shift(words, np.uint64(4), out=codes[:, 1])
    codes &= np.uint64(0x0F0F0F0F0F0F0F0F)  # what came out of the next byte goes
    return codes.view(np.uint8).reshape(*packed.shape[:-1], -1)


def pack_fifth_bits(codes: np.ndarray) -> np.ndarray:
    """GGUF's Q5 high bits: codes (..., 32) to 4 bytes (..., 4), bit j of the little-endian word = bit 4 of code j."""
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def unpack_fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_fifth_bits`, already shifted: bytes (..., 4) to 0 or 16 (..., 32)."""
    high: np.ndarray = np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)
    return high


def low_nibbles(codes: np.ndarray) -> np.ndarray:
    """The lowest four bits of every code."""
    low: np.ndarray = codes & np.uint8(15)
    return low


def pack_quarters(codes: np.ndarray) -> np.ndarray:
    """GGUF's TQ2_0: codes (..., n) below 4, n % 128 == 0, to bytes (..., n / 4).

    Of each 128 codes, byte l holds codes l, l + 32, l + 64 and l + 96 from its lowest bits on. Eight bytes are made at
    a time: no bit of a code leaves its byte.
    """
    parts = np.ascontiguousarray(codes).view(np.uint64).reshape(-1, 4, 4)
    packed: np.ndarray = parts[:, 0].copy()
    for place in range(1, 4):
        packed |= parts[:, place] << np.uint64(2 * place)
    return packed.view(np.uint8).reshape(*codes.shape[:-1], -1)


def unpack_quarters(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_quarters`: bytes (..., n) to codes (..., 4 n)."""
    runs = np.ascontiguousarray(packed).view(np.uint64).reshape(-1, 4)
    codes = np.empty((len(runs), 4, 4), np.uint64)
    for place in range(4):
        np.right_shift(runs, np.uint64(2 * place), out=codes[:, place])
    codes &= np.uint64(0x0303030303030303)  # what came out of the next byte goes
    return codes.view(np.uint8).reshape(*packed.shape[:-1], -1)


def pack_pairs(codes: np.ndarray) -> np.ndarray:
    """GGUF's Q2_0: codes (..., n) below 4, n % 16 == 0, to bytes (..., n / 4), each of four neighbours, LSB first."""
    words = pack_bitstream(codes.reshape(-1, codes.shape[-1]), 2)
    packed: np.ndarray = words.astype("<u4", copy=False).view(np.uint8)
    return packed.reshape(*codes.shape[:-1], -1)


def unpack_pairs(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_pairs`: bytes (..., n), n % 4 == 0, to codes (..., 4 n)."""
    words = np.ascontiguousarray(packed).reshape(-1, packed.shape[-1]).view("<u4")
    return unpack_bitstream(words, 2, 4 * packed.shape[-1]).reshape(*packed.shape[:-1], -1)


_TRIT_RUNS = ((5, 32), (5, 16), (4, 4))
"""TQ1_0's 256 codes in order: how many share a byte, and how many bytes, the codes of one byte that far apart."""


def pack_trits(codes: np.ndarray) -> np.ndarray:
    """GGUF's TQ1_0: codes (..., 256) below 3 to bytes (..., 52), of `_TRIT_RUNS` one after the other.

    The codes of a byte are the digits to base 3 of a number v, the first one the highest of five, and the byte is
    v / 243 of 256, rounded up: multiplied by 3 it carries its first digit out of its 8 bits. Four numbers are made at a
    time: none exceeds 242, so that nothing is carried from one byte into the next.
    """
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(-1, 64)
    numbers, first = [], 0
    for digits, count in _TRIT_RUNS:
        last = first + digits * count // 4
        run = words[:, first:last].reshape(-1, digits, count // 4)
        number = run[:, 0].copy()
        for place in range(1, 5):
            number *= np.uint32(3)
            if place < digits:
                number += run[:, place]
        numbers.append(number)
        first = last
    packed: np.ndarray = np.concatenate(numbers, axis=1).view(np.uint8) * np.uint16(256)
    packed += np.uint16(242)
    packed //= np.uint16(243)
    return packed.astype(np.uint8).reshape(*codes.shape[:-1], 52)


def unpack_trits(packed: np.ndarray) -> np.ndarray:
    """Inverse of `pack_trits`: bytes (..., 52) to codes (..., 256). Bytes that it does not make read as ggml does."""
    codes = np.empty((*packed.shape[:-1], 256), np.uint8)
    first, begin = 0, 0
    for digits, count in _TRIT_RUNS:
        rest = packed[..., begin : begin + count].copy()
        run = codes[..., first : first + digits * count].reshape(*codes.shape[:-1], digits, count)
        for place in range(digits):
            run[..., place, :] = rest.astype(np.uint16) * np.uint16(3) >> np.uint16(8)
            rest *= np.uint8(3)  # modulo 256
        first, begin = first + digits * count, begin + count
    return codes


def block_maxima(magnitudes: np.ndarray) -> np.ndarray:
    """Largest of every row of non-negative float32 (n, 2**k): float32 (n, 1); NaN counts as larger than infinity.

    Non-negative floats order like their bit patterns, and pairwise integer maxima along the whole array are three
    times as fast as a reduction of many short rows.
    """
    rows = len(magnitudes)
    level = np.ascontiguousarray(magnitudes).view(np.uint32).reshape(-1)
    while level.size > rows:
        level = np.maximum(level[0::2], level[1::2])
    return level.view(np.float32).reshape(rows, 1)


def with_sign_of(values: np.ndarray, magnitude: np.float32, *, out: np.ndarray) -> None:
    """Fill `out` with `magnitude`, signed like `values`; all float32 and C-contiguous. Faster than np.copysign."""
    pattern = out.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), np.uint32(1 << 31), out=pattern)
    np.bitwise_or(pattern, magnitude.view(np.uint32), out=pattern)


def magnitude_patterns(values: np.ndarray) -> np.ndarray:
    """Bit patterns of floats with the sign cleared, as unsigned integers of the same width and shape.

    They order like the magnitudes; every NaN lies above infinity.
    """
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    patterns: np.ndarray = values.view(unsigned) & unsigned.type((1 << (8 * values.dtype.itemsize - 1)) - 1)
    return patterns


def normal_float16_patterns(bfloat16: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float16 bit patterns of bfloat16 ones below 65536, where they are normal numbers, and where they are not.

    Args:
        bfloat16: uint16 [n], finite.

    Returns:
        uint16 [n], right except at the second: the indices, int64, of magnitudes below 2^-14, zero among them.
    """
    patterns = bfloat16 & np.uint16(0x7FFF)
    small = np.flatnonzero(patterns < np.uint16(0x3880))  # 2^-14, the smallest normal float16
    patterns <<= np.uint16(3)  # seven bits of mantissa become ten
    patterns -= np.uint16(0xC000)  # 112 x 2^10 modulo 2^16: exponents are biased by 15, not by 127
    patterns |= bfloat16 & np.uint16(0x8000)
    return patterns, small

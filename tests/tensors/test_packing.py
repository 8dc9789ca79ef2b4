"""Bit layouts against literal words, and against Python's unbounded integers as the one-line definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.tensors import packing as bits

LITERAL_STREAMS = {
    "1 bit: thirty-two codes fill one word": (1, [1, 0, 0, 0, 1] + [0] * 26 + [1], [0x80000011]),
    "2 bits: four codes per byte": (2, [1, 2, 3, 0] * 4, [0x39393939]),
    "3 bits: code 10 straddles two words": (3, [0] * 10 + [7], [0xC0000000, 0x00000001]),
    "4 bits: code i is nibble i": (4, list(range(8)), [0x76543210]),
    "4 bits: an unfinished word is zero-filled": (4, [15, 0, 0, 0, 0, 0, 0, 0, 10], [0x0000000F, 0x0000000A]),
    "5 bits: code 6 straddles two words": (5, [0] * 6 + [22], [0x80000000, 0x00000005]),
    "6 bits: code 5 straddles two words": (6, [0] * 5 + [53], [0x40000000, 0x0000000D]),
    "7 bits: code 4 straddles two words": (7, [0] * 4 + [85], [0x50000000, 0x00000005]),
    "8 bits: one code per byte": (8, [1, 2, 3, 255], [0xFF030201]),
}


@pytest.mark.parametrize(("width", "codes", "words"), LITERAL_STREAMS.values(), ids=LITERAL_STREAMS.keys())
def test_a_bitstream_has_the_literal_words(width: int, codes: list[int], words: list[int]) -> None:
    packed = bits.pack_bitstream(np.array([codes], np.uint8), width)
    assert packed.dtype == np.uint32
    assert packed.tolist() == [words]
    assert bits.unpack_bitstream(packed, width, len(codes)).tolist() == [codes]


@st.composite
def code_matrices(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    width = draw(st.integers(1, 8))
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    flat = draw(st.lists(st.integers(0, 2**width - 1), min_size=rows * cols, max_size=rows * cols))
    return width, np.array(flat, np.uint8).reshape(rows, cols)


@settings(max_examples=150, deadline=None)
@given(code_matrices())
def test_a_bitstream_is_the_sum_of_shifted_codes_and_unpacks_to_itself(case: tuple[int, np.ndarray]) -> None:
    width, codes = case
    packed = bits.pack_bitstream(codes, width)
    assert packed.shape == (codes.shape[0], (codes.shape[1] * width + 31) // 32)
    for row, words in zip(codes.tolist(), packed.tolist(), strict=True):
        stream = sum(code << (i * width) for i, code in enumerate(row))
        assert words == [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(len(words))]
    unpacked = bits.unpack_bitstream(packed.view(np.int32), width, codes.shape[1])
    assert unpacked.dtype == np.uint8
    assert np.array_equal(unpacked, codes)


@pytest.mark.parametrize("width", [2, 4])
def test_a_long_bitstream_is_that_of_its_pieces(width: int) -> None:
    """Longer than what is worked on at a time."""
    codes = np.random.default_rng(width).integers(0, 2**width, (3, 150_016)).astype(np.uint8)
    packed = bits.pack_bitstream(codes, width)
    per_word = 32 // width
    for start in (0, 65_536, 140_000 // per_word * per_word):
        words = slice(start // per_word, start // per_word + 64)
        piece = bits.pack_bitstream(np.ascontiguousarray(codes[:, start : start + 64 * per_word]), width)
        assert np.array_equal(packed[:, words], piece)
    assert np.array_equal(bits.unpack_bitstream(packed, width, 150_016), codes)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_adjacent_rows_fill_words_from_their_lowest_bits_on(width: int) -> None:
    per_word = 32 // width
    codes = np.random.default_rng(width).integers(0, 2**width, (per_word * 19, 5)).astype(np.uint8)
    words = bits.pack_adjacent_rows(codes, width)
    assert words.dtype == np.uint32
    for row, col in np.ndindex(words.shape):
        own = codes[row * per_word : (row + 1) * per_word, col].tolist()
        assert int(words[row, col]) == sum(code << (place * width) for place, code in enumerate(own))
    assert np.array_equal(bits.unpack_adjacent_rows(words, width), codes)


@pytest.mark.parametrize("width", range(1, 9))
def test_a_bitstream_unpacks_from_a_transposed_view(width: int) -> None:
    codes = np.random.default_rng(width).integers(0, 2**width, (37, 5)).astype(np.uint8)
    stored_by_columns = bits.pack_bitstream(codes.T, width).T
    assert np.array_equal(bits.unpack_bitstream(stored_by_columns.T, width, 37).T, codes)


def test_nibble_halves_put_code_j_beside_code_j_plus_16() -> None:
    codes = np.arange(32, dtype=np.uint8) % 16
    codes[16:] = codes[16:][::-1]
    packed = bits.pack_nibble_halves(codes)
    assert packed.tobytes().hex() == "f0e1d2c3b4a5968778695a4b3c2d1e0f"
    assert np.array_equal(bits.unpack_nibble_halves(packed), codes)


def test_fifth_bits_are_a_little_endian_word() -> None:
    codes = np.zeros(32, np.uint8)
    codes[[0, 9, 31]] = [16, 31, 17]
    packed = bits.pack_fifth_bits(codes)
    assert int.from_bytes(packed.tobytes(), "little") == 1 << 0 | 1 << 9 | 1 << 31
    assert np.array_equal(bits.unpack_fifth_bits(packed), codes & 16)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 31), min_size=64, max_size=64))
def test_five_bit_blocks_round_trip_through_nibbles_and_fifth_bits(values: list[int]) -> None:
    codes = np.array(values, np.uint8).reshape(2, 32)
    low = bits.unpack_nibble_halves(bits.pack_nibble_halves(bits.low_nibbles(codes)))
    assert np.array_equal(low | bits.unpack_fifth_bits(bits.pack_fifth_bits(codes)), codes)


def test_quarters_put_codes_32_apart_into_a_byte_and_pairs_neighbours() -> None:
    codes = np.zeros((2, 256), np.uint8)
    codes[1, [0, 32, 64, 96, 159, 255]] = [1, 2, 3, 1, 2, 3]
    quarters, pairs = bits.pack_quarters(codes), bits.pack_pairs(codes)
    assert not quarters[0].any()
    assert not pairs[0].any()
    assert {place: byte for place, byte in enumerate(quarters[1].tolist()) if byte} == {0: 0b01111001, 63: 0b11000010}
    assert {place: byte for place, byte in enumerate(pairs[1].tolist()) if byte} == {
        0: 1, 8: 2, 16: 3, 24: 1, 39: 0b10000000, 63: 0b11000000,
    }  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=256, max_size=256))
def test_two_bit_codes_and_trits_come_back(values: list[int]) -> None:
    codes = np.array(values, np.uint8)
    assert np.array_equal(bits.unpack_quarters(bits.pack_quarters(codes)), codes)
    assert np.array_equal(bits.unpack_pairs(bits.pack_pairs(codes)), codes)
    trits = np.minimum(codes, 2)
    assert np.array_equal(bits.unpack_trits(bits.pack_trits(trits)), trits)


def test_a_byte_of_trits_carries_them_out_of_its_top_one_after_the_other() -> None:
    """All 243 of them: times 3 the first is what leaves the eight bits, and so on with what stays."""
    every = np.stack(np.meshgrid(*[np.arange(3)] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    codes = np.zeros((len(every), 256), np.uint8)
    codes[:, [0, 32, 64, 96, 128]] = every
    for digits, byte in zip(every.tolist(), bits.pack_trits(codes)[:, 0].tolist(), strict=True):
        found, rest = [], byte
        for _ in range(5):
            found.append(rest * 3 >> 8)
            rest = rest * 3 & 255
        assert found == digits

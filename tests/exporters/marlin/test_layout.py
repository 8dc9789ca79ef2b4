"""Marlin's order of codes and scales against its definition."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from quantkit.exporters.marlin.matrices import permuted_scales
from quantkit.tensors.packing import pack_marlin, unpack_marlin
from tests.support.marlin_layout import grouped_permutation, reference_pack, reference_permutation, single_permutation

DIGEST = "a92582ba8ab5ce17e5aef443dd2b625ee282223fc05a60823ab2369520c4d46c"
"""SHA-256 of the words of `pattern`, as `reference_pack` makes them."""


def pattern(rows: int = 128, cols: int = 256) -> np.ndarray:
    n, k = np.ogrid[:rows, :cols]
    return ((5 * n + 3 * k + n // 8) % 16).astype(np.uint8)


def test_the_words_of_a_128_x_256_tensor_are_these() -> None:
    """Derived by hand from the closed form, codes[n, k] = (5 n + 3 k + n // 8) % 16. Nibbles from the highest down.

    word [0, 0]:    n = 8 8 0 0 8 8 0 0,                  k = 9 1 9 1 8 0 8 0
    word [5, 200]:  lane 18; n = 76 76 68 68 76 76 68 68, k = 93 85 93 85 92 84 92 84
    word [15, 255]: lane 31, tile 3; n = 127 127 119 119 127 127 119 119, k = 255 247 255 247 254 246 254 246
    """
    words = pack_marlin(pattern())
    assert words.shape == (16, 256)
    assert words.dtype == np.uint32
    assert [hex(words[at]) for at in ((0, 0), (5, 200), (15, 255))] == ["0x4cb31980", "0xc43b9108", "0x7fe64cb3"]
    for made in (words, reference_pack(pattern())):
        assert hashlib.sha256(made.astype("<u4").tobytes()).hexdigest() == DIGEST


def test_every_nibble_is_where_the_closed_form_puts_it() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (192, 48)).astype(np.uint8)
    words = pack_marlin(codes)
    assert words.shape == (3, 384)
    for (tile, place), word in np.ndenumerate(words):
        block, rest = divmod(place, 128)
        lane, part = divmod(rest, 4)
        for i, j in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            k = 16 * tile + 2 * (lane % 4) + [0, 1, 8, 9][j % 4]
            n = 64 * block + 16 * part + lane // 4 + 8 * (j // 4)
            assert int(word) >> 4 * i & 15 == codes[n, k]
    assert np.array_equal(unpack_marlin(words), codes)
    assert np.array_equal(unpack_marlin(words.view(np.int32)), codes)


def test_the_closed_form_is_the_permutation_of_the_kernels_authors() -> None:
    for codes in (pattern(), np.random.default_rng(1).integers(0, 16, (64, 16)).astype(np.uint8)):
        assert np.array_equal(pack_marlin(codes), reference_pack(codes))


def test_lanes_hold_the_b_fragments_of_mma_m16n8k16() -> None:
    """The kernel's way back, slowly: lane by lane, register by register.

    A lane loads four words in a row, one for each 16 x 16 tile. `dequant` of a word takes nibbles 0 and 4 for the
    first pair of halves and 1 and 5 for the second; of the word shifted by 8 bits the same for the other 8 columns.
    PTX: element i of a B fragment of m16n8k16 is row 2 (lane % 4) + i % 2 + 8 (i // 2), column lane // 4.
    """
    codes = np.random.default_rng(2).integers(0, 16, (128, 32)).astype(np.uint8)
    words = pack_marlin(codes)
    found = np.full(codes.shape, 255)
    for tile_row in range(2):
        for tiles in range(2):
            for lane in range(32):
                loaded = words[tile_row, 128 * tiles + 4 * lane :][:4].tolist()
                for tile, word in enumerate(loaded):
                    for half in (0, 1):
                        shifted = word >> 8 * half
                        fragment = [shifted & 15, shifted >> 16 & 15, shifted >> 4 & 15, shifted >> 20 & 15]
                        for i, value in enumerate(fragment):
                            k = 16 * tile_row + 2 * (lane % 4) + i % 2 + 8 * (i // 2)
                            n = 64 * tiles + 16 * tile + 8 * half + lane // 4
                            assert found[n, k] == 255, "two registers hold one weight"
                            found[n, k] = value
    assert np.array_equal(found, codes)


def test_the_order_of_codes_is_a_bijection() -> None:
    """Packing the three hexadecimal digits of 0 .. 1023 tells where each place went."""
    numbers = np.arange(1024).reshape(16, 64).T
    digits = [pack_marlin((numbers // 16**d % 16).astype(np.uint8)) for d in range(3)]
    nibbles = [[int(word) >> 4 * i & 15 for word in packed[0] for i in range(8)] for packed in digits]
    places = [low + 16 * middle + 256 * high for low, middle, high in zip(*nibbles, strict=True)]
    assert sorted(places) == list(range(1024))
    assert sorted(reference_permutation()) == list(range(1024))


@pytest.mark.parametrize(("groups", "order"), [(3, grouped_permutation()), (1, single_permutation())])
def test_scales_are_permuted_in_runs_as_the_kernels_authors_do(groups: int, order: list[int]) -> None:
    scales = np.random.default_rng(3).standard_normal((groups, 192)).astype(np.float16)
    expected = scales.reshape(-1, len(order))[:, order].reshape(scales.shape)
    permuted = permuted_scales(scales)
    assert permuted.tobytes() == expected.tobytes()
    assert permuted_scales(permuted).tobytes() == scales.tobytes()
    assert sorted(order) == list(range(len(order)))

"""ggml's block types: codes and scales to bytes and back, against literal bytes, gguf-py and ggml itself."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import gguf
import numpy as np
import pytest

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import Q2_0, TQ1_0, TQ2_0, BlockType
from tests.support import ggml

QUANTIZED = list(blocks.QUANTIZED.values())
by_type = pytest.mark.parametrize("block", QUANTIZED, ids=lambda block: block.name)


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def changed(plain: bytes, places: Mapping[int, int]) -> bytes:
    return bytes(places.get(place, byte) for place, byte in enumerate(plain))


# All codes are 1 but those at the places named: code 2 at 0, code 0 at 33 (Q2_0: at 5), and at the end of a run.
LITERALS: dict[str, tuple[BlockType, dict[int, int], bytes]] = {
    # four neighbours a byte, the first in the lowest bits: 1 1 1 1 is 0x55, 2 1 1 1 0x56, 1 0 1 1 0x51, 1 1 1 3 0xd5
    "Q2_0": (Q2_0, {0: 2, 5: 0, 63: 3}, half(0.5) + changed(b"\x55" * 16, {0: 0x56, 1: 0x51, 15: 0xD5})),
    # byte l of each half holds l, l + 32, l + 64, l + 96: 33 is in byte 1, 224 = 128 + 96 on top of byte 32
    "TQ2_0": (TQ2_0, {0: 2, 33: 0, 224: 2}, changed(b"\x55" * 64, {0: 0x56, 1: 0x51, 32: 0x95}) + half(0.5)),
    # v = 81 27 9 3 1 times the codes is 121, and ceil(121 * 256 / 243) = 128; four codes are 120, which makes 127.
    # 0 + 81: 213; 33 is the second of byte 1: v = 94, 100; 227 = 160 + 3 + 4 * 16 the last of byte 35: 122, 129;
    # 255 = 240 + 3 + 3 * 4 the fourth of byte 51: v = 123, 130
    "TQ1_0": (
        TQ1_0,
        {0: 2, 33: 0, 227: 2, 255: 2},
        changed(b"\x80" * 48 + b"\x7f" * 4, {0: 213, 1: 100, 35: 129, 51: 130}) + half(0.5),
    ),
}


@pytest.mark.parametrize("name", LITERALS)
def test_the_smallest_tensor_has_the_literal_bytes(name: str) -> None:
    block, places, expected = LITERALS[name]
    codes = np.ones((1, block.elements), np.uint8)
    codes[0, list(places)] = list(places.values())
    assert blocks.pack(block, codes, np.array([[0.5]], np.float16)).tobytes() == expected
    assert len(expected) == block.nbytes


@by_type
def test_packing_is_a_bijection_on_codes(block: BlockType) -> None:
    rng = np.random.default_rng(2)
    cols = 3 * block.elements
    codes = rng.integers(0, block.levels, (7, cols)).astype(np.uint8)
    scale, minimum = (rng.standard_normal((7, 3)).astype(np.float16) for _ in range(2))
    raw = blocks.pack(block, codes, scale, minimum if block.has_minimum else None)
    back_codes, back_scale, back_minimum = blocks.unpack(block, raw)
    assert raw.shape == (7, block.row_bytes(cols))
    assert np.array_equal(back_codes, codes)
    assert np.array_equal(back_scale, scale)
    assert back_minimum is None if not block.has_minimum else np.array_equal(back_minimum, minimum)


@by_type
def test_packed_codes_stand_for_scale_times_code_minus_offset(block: BlockType) -> None:
    codes = (np.arange(block.elements)[None] * 7 % block.levels).astype(np.uint8)
    minimum = np.array([[0.5]], np.float16) if block.has_minimum else None
    raw = blocks.pack(block, codes, np.array([[0.25]], np.float16), minimum)
    zero = 0 if block.offset is None else block.offset
    expected = 0.25 * (codes.astype(float) - zero) + (0.5 if block.has_minimum else 0)
    assert blocks.dequantize(block, raw).tolist() == expected.tolist()


def any_bytes(block: BlockType) -> np.ndarray:
    """Blocks of random bytes but for scales and minimums that are infinite or no number."""
    raw = np.random.default_rng(1).integers(0, 256, (50, 4, block.nbytes)).astype(np.uint8)
    raw[..., block.fields][..., 1::2] &= 0x7B
    return raw.reshape(50, -1)


@pytest.mark.parametrize("block", [b for b in QUANTIZED if b is not Q2_0], ids=lambda block: block.name)
def test_dequantizing_gives_the_values_of_gguf_py(block: BlockType) -> None:
    raw = any_bytes(block)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[block.name])
    assert blocks.dequantize(block, raw).tobytes() == theirs.tobytes()


@pytest.mark.engine("llama-cpp")
@by_type
def test_dequantizing_gives_the_values_of_ggml(block: BlockType) -> None:
    """Whatever the bytes are: a byte of TQ1_0 that no five codes make, code 3 in TQ2_0, subnormal scales."""
    raw = any_bytes(block)
    assert blocks.dequantize(block, raw).tobytes() == ggml.dequantized(block, raw).tobytes()

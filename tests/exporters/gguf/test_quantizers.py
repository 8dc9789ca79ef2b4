"""The quantizers of dense values against literal bytes, gguf-py, and ggml's own in C."""

from __future__ import annotations

import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BlockType
from quantkit.exporters.gguf.quantizers import PIECE_BLOCKS, quantize
from quantkit.tensors import packing as bits
from tests.support import ggml

BF16 = np.dtype(ml_dtypes.bfloat16)
by_type = pytest.mark.parametrize("block", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0], ids=lambda block: block.name)


def half(value: float) -> bytes:
    return struct.pack("<e", value)


RAMP = np.arange(32, dtype=np.float32)[None, :]
LITERALS: dict[str, tuple[BlockType, np.ndarray, bytes]] = {
    # -8 .. 7 twice: d = -8 / -8 = 1, so code = value + 8
    "Q4_0": (Q4_0, np.tile(np.arange(-8, 8, dtype=np.float32), 2)[None], half(1) + bytes(i * 17 for i in range(16))),
    # 0 .. 15 twice above -3: d = 1, m = -3
    "Q4_1": (
        Q4_1,
        np.tile(np.arange(16, dtype=np.float32) - 3, 2)[None],
        half(1) + half(-3) + bytes(i * 17 for i in range(16)),
    ),
    # -16 .. 15: code i is i; its fifth bit is set from code 16 on
    "Q5_0": (Q5_0, RAMP - 16, half(1) + b"\x00\x00\xff\xff" + bytes(i * 17 for i in range(16))),
    "Q5_1": (Q5_1, RAMP + 5, half(1) + half(5) + b"\x00\x00\xff\xff" + bytes(i * 17 for i in range(16))),
    # absmax 127: d = 1, the bytes are the values
    "Q8_0": (Q8_0, (RAMP - 15) * 127 / 16, half(127 / 127) + np.array(
        [-119, -111, -103, -95, -87, -79, -71, -64, -56, -48, -40, -32, -24, -16, -8, 0,
         8, 16, 24, 32, 40, 48, 56, 64, 71, 79, 87, 95, 103, 111, 119, 127], np.int8).tobytes()),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERALS)
def test_the_smallest_tensor_has_the_literal_bytes(name: str) -> None:
    block, values, expected = LITERALS[name]
    assert quantize("w", block, values).tobytes() == expected
    assert len(expected) == block.nbytes


def samples() -> dict[str, np.ndarray]:
    """Values of many magnitudes, and grids on which ties, zeros and repeated extremes are common."""
    rng = np.random.default_rng(0)
    wide = (rng.standard_normal((64, 256)) * 10.0 ** rng.uniform(-7, 3, (64, 1))).astype(np.float32)
    return {
        "normal": wide,
        "bfloat16": wide.astype(BF16).astype(np.float32),
        "float8": np.clip(wide, -400, 400).astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
        "halves": (rng.integers(-254, 255, (64, 256)) / 2).astype(np.float32),
        "ternary": (rng.integers(-1, 2, (64, 256)) * np.float32(0.037)).astype(np.float32),
        "positive": np.abs(wide),
        "zeros": np.zeros((1, 64), np.float32),
        "negative zeros": np.full((1, 64), -0.0, np.float32),
        "constant": np.full((1, 64), 3.7, np.float32),
        "tiny": np.full((1, 64), 1e-42, np.float32) * np.arange(64, dtype=np.float32),
    }


@by_type
def test_quantizing_gives_the_bytes_of_gguf_py(block: BlockType) -> None:
    """All but the sign of a scale or minimum that is zero, which means nothing."""
    kind = gguf.GGMLQuantizationType[block.name]
    for name, values in samples().items():
        if name == "tiny":  # 1 / d overflows there, and what gguf-py stores is undefined
            continue
        theirs = gguf.quants.quantize(values, kind)
        ours = quantize("w", block, values)
        fields = 4 if block.has_minimum else 2
        one, other = (raw.reshape(-1, block.nbytes) for raw in (theirs, ours))
        assert np.array_equal(one[:, fields:], other[:, fields:]), name
        halves = [np.ascontiguousarray(raw[:, :fields]).view(np.float16) for raw in (one, other)]
        assert np.array_equal(*halves), name


@pytest.mark.engine("llama-cpp")
@by_type
def test_quantizing_gives_the_bytes_of_ggml(block: BlockType) -> None:
    for name, values in samples().items():
        if name == "tiny":
            continue
        assert np.array_equal(quantize("w", block, values), ggml.quantized(block, values)), name


@by_type
def test_values_too_small_for_a_float16_scale_become_zeros(block: BlockType) -> None:
    raw = quantize("w", block, samples()["tiny"])
    assert not blocks.dequantize(block, raw).any()


def test_the_float_below_one_half_rounds_down_and_one_half_away_from_zero() -> None:
    """Every code boundary of Q8_0 from both sides; the scale is exactly 1."""
    boundaries = np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)
    below, above = np.nextafter(boundaries, np.float32(-200)), np.nextafter(boundaries, np.float32(200))
    values = np.stack([boundaries, below, above]).reshape(-1)
    values = np.concatenate([values, np.zeros(-len(values) % 31, np.float32)]).reshape(-1, 31)
    values = np.concatenate([np.full((len(values), 1), 127, np.float32), values], axis=1)
    codes = quantize("w", Q8_0, values)[:, 2:].view(np.int8)
    wanted = np.sign(values) * np.floor(np.abs(values.astype(np.float64)) + 0.5)
    assert np.array_equal(codes, wanted)


@by_type
def test_other_float_dtypes_and_piece_boundaries_change_nothing(block: BlockType) -> None:
    rows = PIECE_BLOCKS // 4 + 3
    values = (np.random.default_rng(3).standard_normal((rows, 256)) * 0.02).astype(BF16)
    whole = quantize("w", block, values)
    assert np.array_equal(whole, quantize("w", block, values.astype(np.float32)))
    assert np.array_equal(whole[-5:], quantize("w", block, values[-5:]))


@by_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(block: BlockType, bad: float) -> None:
    values = np.ones((2, 64), np.float32)
    values[1, 40] = bad
    with pytest.raises(NonFiniteValues, match=r"blk\.0\.x"):
        quantize("blk.0.x", block, values)


@by_type
def test_a_scale_beyond_float16_is_refused_by_name(block: BlockType) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, 0] = 3e7
    with pytest.raises(ValueOutOfRange, match="'w'"):
        quantize("w", block, values)


def test_maxima_of_blocks_are_those_of_numpy_and_nan_is_the_largest() -> None:
    magnitudes = np.abs(np.random.default_rng(4).standard_normal((77, 32))).astype(np.float32)
    assert np.array_equal(bits.block_maxima(magnitudes), magnitudes.max(axis=1, keepdims=True))
    magnitudes[3, 9], magnitudes[4, 31] = np.inf, np.nan
    found = bits.block_maxima(magnitudes)[:, 0]
    assert np.isposinf(found[3])
    assert np.isnan(found[4])


def test_a_magnitude_takes_the_signs_of_other_values() -> None:
    values = np.array([1, -2, 0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    out = np.empty_like(values)
    bits.with_sign_of(values, np.float32(0.5), out=out)
    assert np.array_equal(out, np.copysign(np.float32(0.5), values))

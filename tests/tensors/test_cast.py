from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.tensors.cast import FLOATS, check_range, converted
from quantkit.tensors.packing import magnitude_patterns

BF16, F16, F32 = FLOATS["bf16"], FLOATS["f16"], FLOATS["f32"]
TORCH = {BF16: torch.bfloat16, F16: torch.float16, F32: torch.float32}
PATTERNS = {BF16: torch.int16, F16: torch.int16, F32: torch.int32}


def every_value(dtype: np.dtype, largest: float) -> np.ndarray:
    """Every finite value of a 16-bit dtype with at most that magnitude, both zeros included."""
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
    return values[np.isfinite(wide) & (np.abs(wide) <= largest)]


def hard_floats(largest: float) -> np.ndarray:
    """float32 values at and around every rounding boundary of the 16-bit dtypes, and random ones of every size."""
    halves = np.concatenate(
        [every_value(BF16, largest).astype(np.float32), every_value(F16, largest).astype(np.float32)]
    )
    middles = (np.unique(halves)[1:] / 2 + np.unique(halves)[:-1] / 2).astype(np.float32)
    edges = np.concatenate([halves, middles])
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    values = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(9e9)), random])
    return values[np.isfinite(values) & (np.abs(values) <= largest)]


def nearest_even_float16(value: float) -> float:
    """Textbook rounding in exact arithmetic: the multiple of the spacing nearest to `value`, ties to the even one."""
    if value == 0:
        return value
    exact = Fraction(value)
    exponent = max(math.frexp(value)[1] - 1, -14)  # below 2**-14 the spacing stays that of the subnormals
    spacing = Fraction(2) ** (exponent - 10)
    return float(round(exact / spacing) * spacing)  # Python rounds a Fraction to the nearest integer, ties to even


def test_bfloat16_to_float16_is_the_nearest_even_value_for_every_input() -> None:
    values = every_value(BF16, 65504)
    result = converted("t", values, F16)
    assert result.dtype == F16
    expected = np.array([nearest_even_float16(float(value)) for value in values])
    np.testing.assert_array_equal(result.astype(np.float64), expected)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(values.astype(np.float32)))
    assert (np.abs(expected)[expected != 0] < 2**-14).sum() > 1000  # subnormals were among them


@pytest.mark.parametrize(
    ("source", "target", "largest"),
    [
        (BF16, F16, 65504.0),
        (BF16, F32, np.inf),
        (F16, BF16, np.inf),
        (F16, F32, np.inf),
        (F32, F16, 65504.0),
        (F32, BF16, float(ml_dtypes.finfo(BF16).max)),
    ],
    ids=str,
)
def test_every_conversion_equals_that_of_torch_bit_for_bit(source: np.dtype, target: np.dtype, largest: float) -> None:
    values = hard_floats(largest) if source == F32 else every_value(source, largest)
    result = converted("t", values, target)
    theirs = torch.from_numpy(values.view(f"i{source.itemsize}").copy()).view(TORCH[source]).to(TORCH[target])
    assert result.tobytes() == theirs.view(PATTERNS[target]).numpy().tobytes()


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=str)
def test_values_of_the_right_dtype_pass_through_unchanged(dtype: np.dtype) -> None:
    values = np.array([1.5, -2.0, 0.0], dtype)
    assert converted("t", values, dtype) is values
    with pytest.raises(NonFiniteValues):
        converted("t", np.array([np.inf], dtype), dtype)


@pytest.mark.parametrize("source", FLOATS.values(), ids=str)
@pytest.mark.parametrize("target", FLOATS.values(), ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stop_with_tensor_count_and_place(source: np.dtype, target: np.dtype, bad: float) -> None:
    values = np.ones((4, 10), source)
    values[1, 3] = values[2, 0] = bad
    with pytest.raises(NonFiniteValues, match=r"tensor 'w' has 2 NaN or infinite .* first at flat index 1,013$"):
        converted("w", values, target, offset=1000)


def test_every_nan_pattern_is_found() -> None:
    for dtype, infinity in ((BF16, 0x7F80), (F16, 0x7C00)):
        for pattern in (infinity, infinity + 1, 0x7FFF, 0x8000 | infinity, 0x8000 | (infinity + 1), 0xFFFF):
            with pytest.raises(NonFiniteValues):
                check_range("t", np.array([0, pattern], np.uint16).view(dtype), F32)
        check_range("t", np.array([infinity - 1, 0x8000 | (infinity - 1)], np.uint16).view(dtype), F32)


@pytest.mark.parametrize("sign", [1, -1])
def test_values_beyond_float16_stop_and_the_largest_one_does_not(sign: int) -> None:
    assert converted("t", np.array([sign * 65280.0], BF16), F16)[0] == sign * 65280
    assert converted("t", np.array([sign * 65504.0], F32), F16)[0] == sign * 65504
    for source, value in ((BF16, 65536.0), (BF16, 3e38), (F32, 65504.004), (F32, 65519.9), (F32, 1e20)):
        values = np.array([1.0, 2.0, sign * value, sign * value], source)
        with pytest.raises(ValueOutOfRange, match=r"tensor 't' has 2 values beyond float16's 65504") as caught:
            converted("t", values, F16, offset=40)
        assert "flat index 42" in str(caught.value)
        assert caught.value.hint is not None
        assert "bf16 or f32" in caught.value.hint


def test_values_beyond_bfloat16_stop() -> None:
    largest = float(ml_dtypes.finfo(BF16).max)
    assert float(converted("t", np.array([largest], F32), BF16)[0]) == largest
    with pytest.raises(ValueOutOfRange, match="beyond bfloat16's"):
        converted("t", np.array([np.finfo(np.float32).max], F32), BF16)


def test_nan_is_reported_before_a_value_out_of_range() -> None:
    with pytest.raises(NonFiniteValues, match="has 1 NaN"):
        converted("t", np.array([1e30, np.nan], F32), F16)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 3, 4), ()], ids=str)
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    for source in FLOATS.values():
        for target in FLOATS.values():
            result = converted("t", np.ones(shape, source), target)
            assert (result.shape, result.dtype) == (shape, target)
            assert result.astype(np.float64).sum() == np.prod(shape)


def test_the_input_is_not_changed() -> None:
    values = every_value(BF16, 65504)
    before = values.tobytes()
    converted("t", values, F16)
    assert values.tobytes() == before


def test_magnitude_patterns_order_like_magnitudes() -> None:
    values = hard_floats(1e38)
    patterns = magnitude_patterns(values)
    order = np.argsort(np.abs(values), kind="stable")
    assert (np.diff(patterns[order].astype(np.int64)) >= 0).all()
    assert (magnitude_patterns(-values) == patterns).all()
    assert magnitude_patterns(np.array([-0.0, 1.0], F16)).tolist() == [0, 0x3C00]

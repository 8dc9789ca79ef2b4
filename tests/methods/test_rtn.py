"""Affine grids and round to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.methods.rtn import METHOD
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.runs import one_layer


def matrix(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def random_weights(rows: int = 16, cols: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def test_a_symmetric_group_has_the_codes_worked_out_by_hand():
    tensor = round_to_nearest(matrix([-15.0, -3.2, 0.0, 0.9, 1.0, 3.0, 7.0, 15.0]), AffineGroups(bits=4, group_size=8))
    # absmax 15 / 7.5 = 2; w / 2 = -7.5 -1.6 0 0.45 0.5 1.5 3.5 7.5, ties to even, + 8, at most 15
    assert tensor.scale.tolist() == [[2.0]]
    assert tensor.codes.tolist() == [[0, 6, 8, 8, 8, 10, 12, 15]]


def test_an_asymmetric_group_has_the_codes_worked_out_by_hand():
    spec = AffineGroups(bits=2, group_size=4, symmetric=False)
    tensor = round_to_nearest(matrix([-1.0, 0.0, 0.9, 2.0, 3.0, 4.0, 5.0, 6.0]), spec)
    # [-1, 2]: scale 1, zero 1; [3, 6] is widened to [0, 6]: scale 2, zero 0
    assert tensor.scale.tolist() == [[1.0, 2.0]]
    assert tensor.zero.tolist() == [[1, 0]]
    assert tensor.codes.tolist() == [[0, 1, 2, 3, 2, 2, 2, 3]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_code_is_the_nearest_of_all_codes(symmetric: bool, dtype: str):
    spec = AffineGroups(bits=3, group_size=16, symmetric=symmetric, scale_dtype=dtype)
    weight = random_weights()
    tensor = round_to_nearest(weight, spec)
    scale, zero = (np.repeat(a.astype(np.float64), 16, axis=1) for a in (tensor.scale, tensor.zero))
    every = scale[..., None] * (np.arange(8) - zero[..., None])
    distance = np.abs(every - weight[..., None].astype(np.float64))
    chosen = np.take_along_axis(distance, tensor.codes[..., None].astype(np.int64), axis=-1)[..., 0]
    assert (chosen <= distance.min(axis=-1) + 1e-6 * scale).all()


def test_scales_are_rounded_before_codes_are_chosen():
    # In float16 the scale is 1.0 rather than 1.0003; 3.5005 / 1.0003 < 3.5 would give code 11, 3.5005 / 1 gives 12.
    spec = AffineGroups(bits=4, group_size=2)
    tensor = round_to_nearest(matrix([7.5 * 1.0003, 3.5005]), spec)
    assert tensor.scale.tolist() == [[1.0]]
    assert tensor.codes.tolist() == [[15, 12]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_zeros_is_exact_and_keeps_a_usable_scale(symmetric: bool):
    tensor = round_to_nearest(np.zeros((2, 8), np.float32), AffineGroups(bits=4, group_size=4, symmetric=symmetric))
    assert (tensor.scale == 1).all()
    assert (tensor.dequantized() == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-38, 1e-12, 1e-8, 1e-6, 1e-4])
def test_groups_too_small_for_float16_scales_still_get_the_nearest_values(symmetric: bool, size: float):
    weight = random_weights() * np.float32(size)
    tensor = round_to_nearest(weight, AffineGroups(bits=4, group_size=16, symmetric=symmetric))
    assert (tensor.scale > 0).all()
    largest = np.abs(weight).max()
    step = max(largest / 7, 2**-24)
    clipped = (
        15 * 2**-25
    )  # a scale is off by up to half of float16's smallest step, the outermost code by 15 times that
    assert np.abs(tensor.dequantized() - weight).max() <= min(0.55 * step + clipped, largest) * 1.001


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_row_comes_back_as_exactly_as_its_scale_allows(symmetric: bool):
    weight = np.full((3, 32), -0.3, np.float32)
    tensor = round_to_nearest(weight, AffineGroups(bits=4, group_size=-1, symmetric=symmetric))
    bound = 2**-11 if not symmetric else 0.5 / 7.5 + 2**-11  # symmetric: -7.5 steps lie between two codes
    assert np.abs(tensor.dequantized() / weight - 1).max() <= bound


def test_a_scale_beyond_float16_is_refused():
    with pytest.raises(ValueOutOfRange, match=r"largest float16 is 6\.55e"):
        round_to_nearest(np.full((1, 4), 1e6, np.float32), AffineGroups(bits=4, group_size=4))


def test_the_largest_float32_range_does_not_overflow_on_the_way():
    edge = np.finfo(np.float32).max
    spec = AffineGroups(bits=8, group_size=2, symmetric=False, scale_dtype="float32")
    tensor = round_to_nearest(matrix([-edge, edge]), spec)
    assert tensor.codes.tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(value: float):
    weight = random_weights(4, 8)
    weight[2, 5] = value
    with pytest.raises(NonFiniteValues, match=r"first at \[2, 5\]"):
        one_layer(METHOD, weight, AffineGroups(bits=4, group_size=8), None)


def test_a_group_size_that_does_not_divide_the_columns_is_refused():
    with pytest.raises(UnsupportedSpec, match="60 columns are not a multiple of group_size 32"):
        one_layer(METHOD, random_weights(2, 60), AffineGroups(bits=4, group_size=32), None)


def test_the_reported_error_is_that_of_the_weights():
    weight = random_weights(1300, 64)  # several chunks of rows
    tensor, report = one_layer(METHOD, weight, AffineGroups(bits=4, group_size=32), None, threads=2)
    damage = weight.astype(np.float64) - tensor.dequantized()
    assert report.error == pytest.approx((damage**2).sum() / (weight.astype(np.float64) ** 2).sum(), rel=1e-9)
    assert report.fallback is None

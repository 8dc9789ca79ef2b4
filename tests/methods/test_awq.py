"""The method awq on single matrices: laws, nearest codes, useless statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit import registry
from quantkit.calibration.statistics import LayerStatistics
from quantkit.errors import BadOption, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.methods.awq import METHOD
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.laws import correlated_statistics, relative_output_error
from tests.support.runs import one_layer

INT4 = AffineGroups(bits=4, group_size=32)


def random_weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def test_it_asks_for_smoothing_and_the_others_do_not() -> None:
    assert {name: registry.method(name).scales_inputs for name in ("awq", "gptq", "rtn")} == {
        "awq": True,
        "gptq": False,
        "rtn": False,
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_weight_is_at_the_nearest_point_of_its_grid(bits: int, symmetric: bool) -> None:
    weight = random_weights(16, 128)
    spec = AffineGroups(bits=bits, group_size=64, symmetric=symmetric)
    tensor, _ = one_layer(METHOD, weight, spec, correlated_statistics(128))
    scale, zero = (np.repeat(x.astype(np.float64), 64, axis=1) for x in (tensor.scale, tensor.zero))
    points = scale[..., None] * (np.arange(2**bits) - zero[..., None])
    distances = np.abs(points - weight[..., None].astype(np.float64))
    chosen = np.abs(tensor.dequantized() - weight.astype(np.float64))
    assert (chosen <= distances.min(axis=-1) * (1 + 1e-5) + 1e-12).all()


def test_the_grid_is_searched_by_the_energy_of_the_inputs() -> None:
    """With one large column per group the grid serves that column, at the cost of the others."""
    weight = random_weights(64, 128)
    hessian = np.ones(128)
    hessian[::32] = 1e4
    tensor, report = one_layer(METHOD, weight, INT4, LayerStatistics(torch.from_numpy(np.diag(hessian)), 9))
    plain = round_to_nearest(weight, INT4)
    change, plain_change = (np.square(x.dequantized() - weight) for x in (tensor, plain))
    assert change[:, ::32].sum() < 0.05 * plain_change[:, ::32].sum()
    assert change.sum() > plain_change.sum()
    assert report.error == pytest.approx(relative_output_error(weight, tensor.dequantized(), np.diag(hessian)))
    assert report.error_of_rounding == pytest.approx(
        relative_output_error(weight, plain.dequantized(), np.diag(hessian))
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_grid_does_not_hang_on_the_last_bit_of_a_weight(symmetric: bool) -> None:
    """A mirrored grid often holds the same values; s must win then, whatever the sums are rounded to."""
    weight = random_weights(1024, 128)
    moved = weight * (1 + np.random.default_rng(1).uniform(-1e-7, 1e-7, weight.shape)).astype(np.float32)
    spec = AffineGroups(bits=4, group_size=32, symmetric=symmetric)
    tensor, other = (one_layer(METHOD, x, spec, correlated_statistics(128))[0] for x in (weight, moved))
    assert np.array_equal(np.sign(tensor.scale), np.sign(other.scale))
    assert np.mean(tensor.codes != other.codes) < 1e-3


def test_useless_statistics_give_round_to_nearest_and_say_so() -> None:
    weight = random_weights(8, 64)
    broken = correlated_statistics(64).hessian.numpy().copy()
    broken[3, 5] = np.nan
    for hessian, reason in ((broken, "NaN or infinity"), (np.zeros((64, 64)), "all zero")):
        tensor, report = one_layer(METHOD, weight, INT4, LayerStatistics(torch.from_numpy(hessian), 9))
        assert np.array_equal(tensor.codes, round_to_nearest(weight, INT4).codes)
        assert report.fallback == f"the calibration inputs {'hold' if reason[0] == 'N' else 'are'} {reason}"


@pytest.mark.parametrize("magnitude", [1e-30, 1e200])
def test_the_size_of_the_inputs_does_not_matter(magnitude: float) -> None:
    weight, statistics = random_weights(8, 64), correlated_statistics(64)
    usual, _ = one_layer(METHOD, weight, INT4, statistics)
    other, _ = one_layer(METHOD, weight, INT4, LayerStatistics(statistics.hessian * magnitude, 9))
    assert np.array_equal(usual.codes, other.codes)


def test_dead_columns_and_constant_rows_are_finished() -> None:
    hessian = correlated_statistics(64).hessian.numpy().copy()
    dead = [0, *range(32, 64)]
    hessian[dead] = 0
    hessian[:, dead] = 0
    weight = random_weights(8, 64)
    weight[2] = 0.25
    tensor, report = one_layer(METHOD, weight, INT4, LayerStatistics(torch.from_numpy(hessian), 9))
    assert report.fallback is None
    assert np.abs(tensor.dequantized() - weight)[:, 32:].max() < 0.5
    assert np.abs(tensor.dequantized()[2] - 0.25).max() < 0.1


def test_bad_input_is_refused_in_one_line() -> None:
    statistics, weight = correlated_statistics(64), random_weights(4, 64)
    with pytest.raises(BadOption, match="awq needs statistics"):
        one_layer(METHOD, weight, INT4, None)
    with pytest.raises(UnsupportedSpec, match="64 columns are not a multiple of group_size 48"):
        one_layer(METHOD, weight, AffineGroups(bits=4, group_size=48), statistics)
    with pytest.raises(ValueOutOfRange, match="largest float16"):
        one_layer(METHOD, weight * np.float32(1e7), INT4, statistics)
    weight[1, 2] = np.inf
    with pytest.raises(NonFiniteValues, match=r"first at \[1, 2\]"):
        one_layer(METHOD, weight, INT4, statistics)

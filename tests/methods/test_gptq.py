"""GPTQ against a textbook loop that shares no code with it, and against statistics that are of no use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.calibration.statistics import LayerStatistics
from quantkit.errors import BadOption, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.methods import rtn
from quantkit.methods.gptq import METHOD, Gptq
from quantkit.solver.stages import Stages
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.laws import check_method, correlated_statistics, relative_output_error
from tests.support.runs import one_layer

TEXTBOOK = Gptq(Stages(search=False, act_order=False, rounds=0, damping=0.01))


def random_weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def textbook_gptq(
    weight: np.ndarray, hessian: np.ndarray, *, bits: int, group: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and quantized weights by the paper's loop: float64, the rest of the matrix updated at every column."""
    W = weight.astype(np.float64)
    rows, cols = W.shape
    damped = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(cols)
    U = np.linalg.cholesky(np.linalg.inv(damped)).T
    codes, quantized = np.zeros((rows, cols), int), np.zeros((rows, cols))
    top = 2**bits - 1
    for j in range(cols):
        if j % group == 0:
            part = W[:, j : j + group]
            low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
            if symmetric:
                low, high = -np.maximum(-low, high), np.maximum(-low, high)
            scale = ((high - low) / top).astype(np.float16).astype(np.float64)
            zero = np.full(rows, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / scale), 0, top)
        codes[:, j] = np.clip(np.rint(W[:, j] / scale) + zero, 0, top)
        quantized[:, j] = scale * (codes[:, j] - zero)
        W[:, j:] -= np.outer((W[:, j] - quantized[:, j]) / U[j, j], U[j, j:])
    return codes, quantized


def test_the_textbook_keeps_the_laws():
    check_method(TEXTBOOK)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 128), (4, 48), (4, 192), (4, 384), (8, 96)])
def test_codes_and_error_agree_with_the_textbook_loop(bits: int, group: int, symmetric: bool):
    weight, statistics = random_weights(40, 384), correlated_statistics(384)
    spec = AffineGroups(bits=bits, group_size=group, symmetric=symmetric)
    tensor, report = one_layer(TEXTBOOK, weight, spec, statistics)
    codes, quantized = textbook_gptq(weight, statistics.hessian.numpy(), bits=bits, group=group, symmetric=symmetric)
    # Where float32 and float64 fall on two sides of a tie, the rest of that row differs too.
    assert (tensor.codes != codes).any(axis=1).mean() < 0.1
    assert report.error == pytest.approx(relative_output_error(weight, quantized, statistics.hessian.numpy()), rel=1e-3)


def test_it_beats_round_to_nearest_on_correlated_inputs_by_the_expected_margin():
    weight, statistics = random_weights(256, 512), correlated_statistics(512)
    spec = AffineGroups(bits=4, group_size=128)
    ours, _ = one_layer(TEXTBOOK, weight, spec, statistics)
    baseline, _ = one_layer(rtn.METHOD, weight, spec, None)
    ratio = relative_output_error(weight, ours.dequantized(), statistics.hessian.numpy()) / relative_output_error(
        weight, baseline.dequantized(), statistics.hessian.numpy()
    )
    assert 0.10 < ratio < 0.30


def test_uncorrelated_inputs_give_round_to_nearest():
    weight = random_weights(64, 256)
    spec = AffineGroups(bits=4, group_size=64, symmetric=False)
    diagonal = torch.arange(1.0, 257.0, dtype=torch.float64).diag()
    tensor, report = one_layer(TEXTBOOK, weight, spec, LayerStatistics(diagonal, 9))
    baseline, _ = one_layer(rtn.METHOD, weight, spec, None)
    assert np.array_equal(tensor.codes, baseline.codes)
    assert np.array_equal(tensor.scale, baseline.scale)
    assert report.fallback is None


@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_a_singular_hessian_of_few_tokens_is_solved_by_damping(tokens: int):
    inputs = np.random.default_rng(3).standard_normal((tokens, 256))
    weight, spec = random_weights(32, 256), AffineGroups(bits=4, group_size=128)
    tensor, report = one_layer(TEXTBOOK, weight, spec, LayerStatistics(torch.from_numpy(inputs.T @ inputs), tokens))
    baseline, _ = one_layer(rtn.METHOD, weight, spec, None)
    assert report.fallback is None
    rounded = relative_output_error(weight, baseline.dequantized(), inputs.T @ inputs)
    assert report.error < 0.25 * rounded
    assert report.error == pytest.approx(
        relative_output_error(weight, tensor.dequantized(), inputs.T @ inputs), rel=1e-3
    )


def test_dead_columns_are_rounded_to_nearest_and_change_nothing_else():
    statistics = correlated_statistics(128)
    dead = [0, 17, 64, 127]
    hessian = statistics.hessian.numpy().copy()
    hessian[dead] = 0
    hessian[:, dead] = 0
    weight = random_weights(16, 128)
    spec = AffineGroups(bits=4, group_size=-1)
    tensor, report = one_layer(TEXTBOOK, weight, spec, LayerStatistics(torch.from_numpy(hessian), 9))
    baseline, _ = one_layer(rtn.METHOD, weight, spec, None)
    assert report.fallback is None
    assert np.array_equal(tensor.scale, baseline.scale)
    assert np.array_equal(tensor.codes[:, dead], baseline.codes[:, dead])
    assert not np.array_equal(tensor.codes, baseline.codes)


def test_inputs_that_are_all_zero_give_round_to_nearest():
    weight, spec = random_weights(8, 64), AffineGroups(bits=4, group_size=32)
    tensor, report = one_layer(TEXTBOOK, weight, spec, LayerStatistics(torch.from_numpy(np.zeros((64, 64))), 5))
    baseline, _ = one_layer(rtn.METHOD, weight, spec, None)
    assert np.array_equal(tensor.codes, baseline.codes)
    assert report.error == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_give_round_to_nearest_and_say_so(value: float):
    hessian = correlated_statistics(64).hessian.numpy().copy()
    hessian[3, 5] = value
    weight, spec = random_weights(8, 64), AffineGroups(bits=4, group_size=32)
    tensor, report = one_layer(TEXTBOOK, weight, spec, LayerStatistics(torch.from_numpy(hessian), 9))
    baseline, expected = one_layer(rtn.METHOD, weight, spec, None)
    assert np.array_equal(tensor.codes, baseline.codes)
    assert report.fallback == "the calibration inputs hold NaN or infinity"
    assert report.error == expected.error


def test_a_hessian_that_no_damping_mends_gives_round_to_nearest_and_says_so():
    hessian = np.eye(64)
    hessian[0, 1] = hessian[1, 0] = 1e6  # no sum of x xᵀ: not positive semidefinite
    tensor, report = one_layer(
        TEXTBOOK,
        random_weights(8, 64),
        AffineGroups(bits=4, group_size=32),
        LayerStatistics(torch.from_numpy(hessian), 9),
    )
    assert report.fallback == "the Hessian cannot be factored, even with damping 1"
    assert tensor.shape == (8, 64)


def test_feedback_beyond_the_scales_range_gives_round_to_nearest_and_says_so():
    weight = np.full((2, 64), 9e4, np.float32)  # at 2 bits the scale is 6e4 and the largest value 6e4: 3e4 is left over
    ones = LayerStatistics(torch.ones((64, 64), dtype=torch.float64), 1)  # the next column shall make up for all of it
    tensor, report = one_layer(TEXTBOOK, weight, AffineGroups(bits=2, group_size=32), ones)
    assert report.fallback == "error feedback drove weights beyond float16 scales"
    assert (tensor.dequantized() == 6e4).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_constant_row_is_finished_with_a_small_error(symmetric: bool):
    weight = random_weights(4, 128)
    weight[2] = 0.25
    spec = AffineGroups(bits=4, group_size=64, symmetric=symmetric)
    tensor, report = one_layer(TEXTBOOK, weight, spec, correlated_statistics(128))
    assert report.fallback is None
    assert np.abs(tensor.dequantized()[2] - 0.25).max() < 0.1


def test_bad_input_is_refused_in_one_line():
    statistics, spec = correlated_statistics(64), AffineGroups(bits=4, group_size=32)
    weight = random_weights(4, 64)
    with pytest.raises(BadOption, match="needs statistics"):
        one_layer(TEXTBOOK, weight, spec, None)
    with pytest.raises(UnsupportedSpec, match="64 columns are not a multiple of group_size 48"):
        one_layer(TEXTBOOK, weight, AffineGroups(bits=4, group_size=48), statistics)
    with pytest.raises(ValueOutOfRange, match="largest float16"):
        one_layer(TEXTBOOK, weight * np.float32(1e7), spec, statistics)
    weight[1, 2] = np.nan
    with pytest.raises(NonFiniteValues, match=r"first at \[1, 2\]"):
        one_layer(TEXTBOOK, weight, spec, statistics)


STAGES = {
    "textbook": TEXTBOOK,
    "act_order": Gptq(Stages(search=False, rounds=0, damping=0.01)),
    "search": Gptq(Stages(rounds=0, damping=0.01)),
    "descent": Gptq(Stages(damping=0.01)),
}


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (3, True), (2, True)])
def test_every_stage_lowers_the_error_of_the_one_before(bits: int, symmetric: bool):
    weight, statistics = random_weights(96, 512), correlated_statistics(512)
    spec = AffineGroups(bits=bits, group_size=128, symmetric=symmetric)
    errors = {}
    for name, method in STAGES.items():
        tensor, report = one_layer(method, weight, spec, statistics)
        errors[name] = relative_output_error(weight, tensor.dequantized(), statistics.hessian.numpy())
        assert report.error == pytest.approx(errors[name], rel=1e-6)
    # Static groups take from act-order what they give up in grids that follow the updated weights.
    assert errors["act_order"] < 1.05 * errors["textbook"]
    # A searched grid is the better the fewer levels there are: with 16 between the extremes next to nothing is left.
    assert errors["search"] < (1.01 if spec.levels == 16 and not symmetric else 1.0) * errors["act_order"]
    assert {4: 0.5, 3: 0.3, 2: 0.1}[bits] * errors["textbook"] < errors["descent"] < 0.9 * errors["textbook"]
    assert errors["descent"] < 0.95 * errors["search"]


def test_no_single_code_can_be_changed_for_the_better_after_the_descent():
    weight, statistics = random_weights(8, 128), correlated_statistics(128)
    spec = AffineGroups(bits=3, group_size=64)
    tensor, _ = one_layer(Gptq(Stages(rounds=8, damping=0.01)), weight, spec, statistics)
    H = statistics.hessian.numpy() + 0.01 * np.diag(statistics.hessian.numpy()).mean() * np.eye(128)
    scale = np.repeat(tensor.scale.astype(np.float64), 64, axis=1)
    R = (tensor.dequantized() - weight.astype(np.float64)) @ H
    for change in (-1, 1):
        possible = (tensor.codes.astype(int) + change >= 0) & (tensor.codes.astype(int) + change < 8)
        gain = 2 * change * scale * R + scale**2 * np.diag(H)
        assert (gain[possible] > -1e-6 * np.abs(gain).max()).mean() > 0.999


def test_a_grid_may_have_a_negative_scale_and_says_so_in_the_scale():
    weight = np.tile(np.linspace(-0.5, 1.0, 64, dtype=np.float32), (4, 2))
    tensor, _ = one_layer(METHOD, weight, AffineGroups(bits=2, group_size=64), correlated_statistics(128))
    assert (tensor.scale < 0).any()

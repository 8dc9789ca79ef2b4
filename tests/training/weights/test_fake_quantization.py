"""Fake quantization: the values are those that are exported, and the gradients are those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.training.weights.fake_quantization import (
    DerivedScales,
    FakeQuantizer,
    LearnedScales,
    affine_scheme,
    check_scheme,
)
from tests.support.quantized_models import random_quantized

ROWS, COLS = 6, 64
SCHEMES = {
    "ternary row": AffineGroups(bits=2, group_size=-1, ternary=True, scale_dtype="bfloat16"),
    "ternary g32": AffineGroups(bits=2, group_size=32, ternary=True),
    "int4 g32 sym": AffineGroups(bits=4, group_size=32),
    "int4 row float32": AffineGroups(bits=4, group_size=-1, scale_dtype="float32"),
    "int2 g32 asym": AffineGroups(bits=2, group_size=32, symmetric=False),
}
SYMMETRIC = [name for name, scheme in SCHEMES.items() if scheme.symmetric]


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (ROWS, COLS)).astype(np.float32)


def learned(scheme: AffineGroups) -> LearnedScales:
    return LearnedScales(torch.from_numpy(weight()), round_to_nearest(weight(), scheme))


def moved(quantizer: FakeQuantizer) -> None:
    """Move all parameters, as training would."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in quantizer.parameters.items():
        tensor.add_(torch.randn(tensor.shape, generator=random), alpha=0.2 if name == "scale" else quantizer.unit)


@pytest.mark.parametrize("name", SCHEMES)
def test_training_begins_at_the_codes_it_is_given(name: str) -> None:
    start = random_quantized((ROWS, COLS), SCHEMES[name], seed=4)  # scales of both signs, one of them zero
    start.scale[0, 0] = 0.25
    made = LearnedScales(torch.from_numpy(weight()), start)
    assert made.exported().numbers_digest() == start.numbers_digest()
    np.testing.assert_array_equal(made.values().numpy(), start.dequantized())


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_exported_is_what_was_computed_with(name: str) -> None:
    quantizer = learned(SCHEMES[name])
    before = quantizer.exported().numbers_digest()
    moved(quantizer)
    exported = quantizer.exported()
    assert exported.numbers_digest() != before
    np.testing.assert_array_equal(quantizer.values().numpy(), exported.dequantized())


@pytest.mark.parametrize("name", SYMMETRIC)
def test_derived_scales_follow_the_latent_weights(name: str) -> None:
    quantizer = DerivedScales(torch.from_numpy(weight()), SCHEMES[name])
    moved(quantizer)
    np.testing.assert_array_equal(quantizer.values().numpy(), quantizer.exported().dequantized())
    latent = quantizer.parameters["latent"].view(ROWS, COLS).numpy()
    if not SCHEMES[name].ternary:  # the grid covers the group, as round to nearest has it
        assert quantizer.exported().numbers_digest() == round_to_nearest(latent, SCHEMES[name]).numbers_digest()


def test_ternary_scales_are_the_mean_magnitude() -> None:
    row = np.array([[0.5, -1.5, 0.25, 1.75]], np.float32)  # the mean magnitude is 1
    made = DerivedScales(torch.from_numpy(row), SCHEMES["ternary row"]).exported()
    assert made.scale.astype(np.float32).tolist() == [[1.0]]
    assert made.dequantized().tolist() == [[0.0, -1.0, 0.0, 1.0]]  # 0.5 rounds to even


def test_scales_far_outside_the_dtype_stay_numbers() -> None:
    quantizer = learned(SCHEMES["ternary row"])
    quantizer.parameters["scale"].fill_(80.0)
    assert np.isfinite(quantizer.exported().dequantized()).all()
    quantizer.parameters["scale"].fill_(-80.0)
    assert (quantizer.exported().scale > 0).all()


def straight_through(quantizer: LearnedScales, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """LSQ's formula as it is usually written: rounding detached, clamping differentiated."""
    latent = quantizer.parameters["latent"].clone().requires_grad_()
    log_scale = quantizer.parameters["scale"].clone().requires_grad_()
    start = quantizer.constants()[1][..., None]
    wanted = start * log_scale.exp()[..., None]
    scale = wanted + (quantizer.fit().scale[..., None] - wanted).detach()
    steps = (latent * start / scale).clamp(low - 0.5, high + 0.5)
    levels = steps + (steps.round().clamp(low, high) - steps).detach()
    return (levels * scale).view(quantizer.shape), latent, log_scale


@pytest.mark.parametrize(("name", "low", "high"), [("ternary g32", -1, 1), ("int4 g32 sym", -8, 7)])
def test_gradients_of_learned_scales_are_those_of_lsq(name: str, low: int, high: int) -> None:
    quantizer = learned(SCHEMES[name])
    moved(quantizer)
    gradient = torch.randn((ROWS, COLS), generator=torch.Generator().manual_seed(2))
    quantizer.backward(gradient)
    values, latent, log_scale = straight_through(quantizer, low, high)
    torch.testing.assert_close(values.detach(), quantizer.values(), rtol=1e-5, atol=1e-7)
    values.backward(gradient)
    inside = (quantizer.steps(quantizer.fit()) >= low - 0.5) & (quantizer.steps(quantizer.fit()) <= high + 0.5)
    assert 0.1 < float(inside.float().mean()) < 1.0
    torch.testing.assert_close(quantizer.parameters["latent"].grad, latent.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(quantizer.parameters["scale"].grad, log_scale.grad, rtol=1e-3, atol=1e-5)


def test_gradients_of_derived_scales_go_straight_through() -> None:
    quantizer = DerivedScales(torch.from_numpy(weight()), SCHEMES["ternary row"])
    gradient = torch.randn((ROWS, COLS))
    quantizer.backward(gradient)
    assert torch.equal(quantizer.parameters["latent"].grad.view(ROWS, COLS), gradient)


def test_grids_that_cannot_be_trained_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedSpec, match=r"^w: training knows evenly spaced levels"):
        affine_scheme("w", OffsetGroups(bits=4, group_size=32))
    with pytest.raises(UnsupportedSpec, match=r"^w: scales are derived from latent weights for symmetric grids"):
        check_scheme("w", SCHEMES["int2 g32 asym"], "derived")
    check_scheme("w", SCHEMES["int2 g32 asym"], "learned")

"""The search for input scales: which are taken, and which channels are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantkit.calibration.activations import HiddenStates
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_block
from quantkit.models.recognition import parse_config
from quantkit.models.spec import NORM_ROLES, Role
from quantkit.protocols import InputScales, Layer, Readers
from quantkit.solver.smoothing_search import chosen_scales
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView
from tests.support.divergence import divergence
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.outliers import SEQUENCES, outlier_arrays, outlier_model
from tests.support.runs import quantized, read_through

INT4 = AffineGroups(bits=4, group_size=32)
SPEC = parse_config(tiny_config())
READERS = SPEC.readers
EVERYTHING = (Role.ATTN_NORM, Role.V, Role.MLP_NORM, Role.UP)


def chosen(
    source: Checkpoint, before: Role, *, scheme: AffineGroups = INT4, **changed: tuple[list[torch.Tensor], ...]
) -> InputScales:
    """The choice for block 0, on SEQUENCES."""
    block = load_block(source, 0)
    inputs = next(
        x for x in HiddenStates(source, SEQUENCES, skip_positions=4).inputs(block) if x.roles == READERS[before]
    )
    weight = source.weights[SPEC.weight_name(0, before)]
    assert isinstance(weight, TensorView)
    layers = (Layer(role, block.weight(role).detach().numpy(), scheme) for role in inputs.roles)
    readers = Readers(
        layers=tuple(layers),
        folds=inputs.folds,
        feeding=block.weight(before),
        feeding_scheme=None if before in NORM_ROLES else scheme,
        feeding_dtype=weight.dtype,
        head_dim=source.spec.head_dim,
    )
    return chosen_scales(replace(readers, **changed))


@pytest.mark.parametrize("before", EVERYTHING)
def test_scales_are_powers_of_the_mean_inputs_normalised_as_in_the_paper(before: Role) -> None:
    source = outlier_model()
    choice = chosen(source, before)
    assert 0 < choice.exponent < 1
    inputs = next(
        x
        for x in HiddenStates(source, SEQUENCES, skip_positions=4).inputs(load_block(source, 0))
        if x.roles == READERS[before]
    )
    m = torch.cat([x for fold in inputs.folds for x in fold]).abs().mean(0).double().numpy()
    if before is Role.V:  # heads 0, 1 read the first head of v, 2 and 3 the second
        m = m.reshape(2, 2, 16).mean(1).reshape(-1)
    power = m**choice.exponent
    assert choice.scale == pytest.approx(power / np.sqrt(power.max() * power.min()), rel=1e-5)


def test_a_gain_that_does_not_carry_over_to_a_fold_left_out_is_not_taken() -> None:
    source = outlier_model()
    fitted, held_out = (
        [torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 64))).float() for _ in range(4)]
        for seed in (1, 2)
    )
    large, elsewhere = torch.ones(64), torch.ones(64)
    large[::16], elsewhere[8::16] = 5, 100
    same, other = [x * large for x in held_out], [x * elsewhere for x in held_out]
    fitted = [x * large for x in fitted]
    assert chosen(source, Role.MLP_NORM, folds=(fitted, same)).exponent > 0
    assert chosen(source, Role.MLP_NORM, folds=(fitted, other)).scale is None
    assert chosen(source, Role.MLP_NORM, folds=(fitted,)).exponent == 0, "nothing to judge by"


def test_inputs_of_no_use_are_not_smoothed_by() -> None:
    source = outlier_model()
    for value in (np.nan, np.inf, 0.0):
        useless = [torch.full((9, source.spec.hidden_size), value)]
        found = chosen(source, Role.ATTN_NORM, folds=(useless, useless))
        assert (found.exponent, found.scale) == (0, None)


def test_dead_channels_keep_scale_one() -> None:
    arrays = outlier_arrays(tiny_config(num_hidden_layers=1))
    arrays["model.layers.0.input_layernorm.weight"][[3, 60]] = 0
    source = memory_checkpoint(tiny_config(num_hidden_layers=1), arrays)
    choice = chosen(source, Role.ATTN_NORM)
    assert choice.scale is not None
    assert choice.scale[[3, 60]].tolist() == [1, 1]
    found = read_through(quantized(source, INT4, "awq", calibration=SEQUENCES))
    assert divergence(source, found) < 0.1


@pytest.mark.parametrize("magnitude", [1e-4, 1e-7, 3e4])
def test_rows_are_not_divided_beyond_the_range_of_their_scales(magnitude: float) -> None:
    """float16 is exact from 6e-5 on and ends at 65504."""
    arrays = outlier_arrays(tiny_config(num_hidden_layers=1))
    for name, factor in (("up_proj", magnitude), ("down_proj", 1 / magnitude)):
        arrays[f"model.layers.0.mlp.{name}.weight"] *= np.float32(factor)
    choice = chosen(memory_checkpoint(tiny_config(num_hidden_layers=1), arrays), Role.UP)
    if choice.scale is None:
        return
    covering = np.abs(arrays["model.layers.0.mlp.up_proj.weight"].reshape(96, 2, 32)).max(-1) * 2 / 15
    divided = covering / choice.scale[:, None]
    assert ((divided >= 2.0**-12) | (divided >= covering * 0.999)).all()
    assert ((divided <= 65504) | (divided <= covering * 1.001)).all()

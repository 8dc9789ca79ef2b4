"""What every linear layer sees, block by block, against the whole model."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from quantkit.calibration.activations import HiddenStates, Inputs, embedded
from quantkit.calibration.samples import Samples, Source, joined, make_samples
from quantkit.models.loading import load_block, load_model
from quantkit.models.spec import Role
from tests.support.memory import memory_checkpoint, tiny_config
from tests.support.outliers import SEQUENCES, outlier_model


def samples_of(*rows: list[int]) -> Samples:
    return make_samples([np.array(row, np.int64) for row in rows], source="text", digest="")


def random_samples(*lengths: int, vocab: int = 97) -> Samples:
    rng = np.random.default_rng(5)
    return samples_of(*(rng.integers(0, vocab, length).tolist() for length in lengths))


def test_embedding_rows_are_scaled_and_in_place():
    checkpoint = memory_checkpoint(tiny_config())
    samples = samples_of([5, 5, 96, 0], [7])
    table = checkpoint.weights["model.embed_tokens.weight"].read()
    first, second = embedded(checkpoint, samples.sequences)
    assert np.array_equal(first.numpy(), table[[5, 5, 96, 0]] * np.float32(12))
    assert np.array_equal(second.numpy(), table[[7]] * np.float32(12))


def test_statistics_are_those_of_what_the_layers_of_the_whole_model_see():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(20, 9)
    seen: dict[str, list[np.ndarray]] = {}
    model = load_model(checkpoint)
    for name, module in model.named_modules():
        if name.endswith("proj"):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(f"{name}.weight", []).append(args[0][0].double().numpy())
            )
    for row in samples.sequences:
        model(torch.from_numpy(row)[None])
    hidden = HiddenStates(checkpoint, samples)
    for layer in range(checkpoint.spec.num_hidden_layers):
        order = []
        for stage in hidden.stages(load_block(checkpoint, layer), load_block(checkpoint, layer)):
            order += stage.roles
            for role in stage.roles:
                name = checkpoint.spec.weight_name(layer, role)
                for x, statistics in zip(seen[name], stage.folds, strict=True):
                    expected = x.T @ x
                    assert statistics.tokens == len(x)
                    assert np.abs(statistics.hessian.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
                assert not any(fold.any() for fold in stage.drift.folds)  # nothing was quantized: both streams are one
        assert order == [Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN]


def test_every_stage_sees_the_weights_that_were_put_in_before_it():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16)
    hidden, block = HiddenStates(checkpoint, samples), load_block(checkpoint, 0)
    before = hidden.states[0].clone()
    for stage in hidden.stages(block, load_block(checkpoint, 0)):
        for role in stage.roles:
            block.weight(role).mul_(0.5)
    # `block` now holds all replaced weights: its plain forward pass must give what the stages gave one by one.
    cos, sin = hidden.rotary[16]
    expected = block(before[None], cos, sin)
    np.testing.assert_allclose(hidden.states[0].numpy(), expected[0].numpy(), rtol=1e-5, atol=1e-5)


def of_first(x: torch.Tensor, skip: int) -> torch.Tensor:
    """Σ x xᵀ of the first positions of a sequence, none longer than the others are in the mean; float64."""
    first, typical = x[:skip].double(), x[skip:].double().square().sum(1).mean().sqrt()
    length = first.norm(dim=1, keepdim=True)
    shrunk = first * torch.minimum(typical / length, torch.ones(()))
    return shrunk.T @ shrunk


def test_first_positions_count_no_more_than_others():
    source = outlier_model()
    hidden = HiddenStates(source, SEQUENCES, skip_positions=4)
    block = load_block(source, 0)
    for number, stage in enumerate(hidden.stages(deepcopy(block), block)):
        whole = sum(float(fold.hessian.diagonal().sum()) for fold in stage.folds)
        assert sum(fold.tokens for fold in stage.folds) == sum(map(len, SEQUENCES.sequences))
        if number == 0:
            states = HiddenStates(source, SEQUENCES, skip_positions=4)
            x = next(inputs for _, (inputs, _) in states._steps(block, block))
            first = sum(float(of_first(row, 4).diagonal().sum()) for row in x)
            others = sum(float(row[4:].double().square().sum()) for row in x)
            assert whole == pytest.approx(first + others, rel=1e-4)
            assert first <= others * 4 * len(x) / sum(len(row) - 4 for row in x) * 1.5


def test_statistics_count_positions_by_their_importance():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16, 9, 12)
    plain, weighed = (HiddenStates(checkpoint, samples, skip_positions=2) for _ in range(2))
    random = torch.Generator().manual_seed(0)
    importance = [torch.rand(length, 1, generator=random) for length in (16, 9)]  # of the first two of three sequences
    mean = torch.cat([x[2:] for x in importance]).mean()
    inputs, blocks = [], [load_block(checkpoint, 0) for _ in range(3)]
    for _, (states, _) in plain._steps(blocks[0], blocks[1]):
        inputs.append(list(states))
    for x, stage in zip(inputs, weighed.stages(blocks[0], blocks[2], {Role.O: importance}), strict=True):
        counts = [*(part[2:] / mean for part in importance), 1.0] if stage.roles[0] in {Role.Q, Role.O} else [1.0] * 3
        for row, count, fold in zip(x, counts, stage.folds, strict=True):
            part = row[2:].double()
            wanted = (part * count).T @ part + of_first(row, 2)
            torch.testing.assert_close(fold.hessian.double(), wanted, rtol=1e-4, atol=1e-5)


def test_statistics_count_sources_by_their_weights():
    checkpoint = memory_checkpoint(tiny_config())
    rows = random_samples(18, 10, 10).sequences

    def first_statistics(weight: float) -> list[torch.Tensor]:
        parts = [
            (Source(name="a", kind="text", digest=""), rows[:1]),
            (Source(name="b", kind="text", digest="", weight=weight), rows[1:]),
        ]
        hidden = HiddenStates(checkpoint, joined(parts), skip_positions=2)
        stage = next(hidden.stages(load_block(checkpoint, 0), load_block(checkpoint, 0)))
        return [fold.hessian for fold in stage.folds]

    for alike, weighed, factor in zip(first_statistics(1.0), first_statistics(0.5), (4 / 3, 2 / 3), strict=True):
        torch.testing.assert_close(weighed, alike * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_importance_that_says_nothing_leaves_all_positions_alike(value: float):
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(16, 9)
    hidden, block = HiddenStates(checkpoint, samples), load_block(checkpoint, 0)
    importance = {role: [torch.full((length, 1), value) for length in (16, 9)] for role in (Role.O, Role.DOWN)}
    found, plain = (
        [fold.hessian for stage in states.stages(block, load_block(checkpoint, 0), given) for fold in stage.folds]
        for states, given in ((hidden, importance), (HiddenStates(checkpoint, samples), None))
    )
    assert all(map(torch.equal, found, plain))


def test_bfloat16_statistics_are_nearly_those_of_float32():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(64, 40)
    block = load_block(checkpoint, 0)
    exactly, nearly = (
        [stage.folds[0].hessian for stage in HiddenStates(checkpoint, samples, bfloat16=half).stages(block, block)]
        for half in (False, True)
    )
    for a, b in list(zip(exactly, nearly, strict=True))[1:]:  # the first layers read a norm's output, which is float32
        assert 0 < float((a - b).norm() / a.norm()) < 0.02
        assert b.dtype == torch.float32


def test_two_threads_give_the_same_statistics_as_one():
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(31, 7, 64, 12, 12)
    digests = []
    for threads in (1, 2):
        hidden = HiddenStates(checkpoint, samples, threads=threads)
        block = load_block(checkpoint, 0)
        digests.append([])
        for stage in hidden.stages(block, load_block(checkpoint, 0)):
            digests[-1] += [fold.hessian.numpy().tobytes() for fold in stage.folds]
            digests[-1] += [fold.numpy().tobytes() for fold in stage.drift.folds]
            block.weight(stage.roles[0]).mul_(0.9)
        digests[-1] += [state.numpy().tobytes() for state in hidden.states]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("skip", [0, 3])
def test_drift_is_the_correlation_of_what_a_layer_lacks_with_what_it_sees(skip: int):
    checkpoint, samples = memory_checkpoint(tiny_config()), random_samples(20, 9)
    hidden = HiddenStates(checkpoint, samples, skip_positions=skip)
    original, block = load_block(checkpoint, 0), load_block(checkpoint, 0)
    before = [state.clone() for state in hidden.states]
    for stage in hidden.stages(block, original):
        for role in stage.roles:
            block.weight(role).mul_(0.8)
        if stage.roles == (Role.DOWN,):
            drift, seen = stage.drift, stage
    scale = checkpoint.spec.residual_scale
    for index, found in enumerate(drift.folds):
        cos, sin = hidden.rotary[len(before[index])]
        wanted = original(before[index][None], cos, sin)
        mixed = block.self_attn.mix(block.input_layernorm(before[index][None]), cos, sin, None)
        stream = before[index] + block.self_attn.o_proj(mixed)[0] * scale
        x = block.mlp.gated(block.post_attention_layernorm(stream))
        lacking = (wanted[0] - stream) / scale - original.mlp.down_proj(x)
        expected = lacking[skip:].double().T @ x[skip:].double()
        assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert seen.folds[0].tokens == 20


def test_inputs_of_a_block_are_seen_without_moving() -> None:
    source = outlier_model()
    hidden, other = (HiddenStates(source, SEQUENCES, skip_positions=0) for _ in range(2))
    block = load_block(source, 0)
    ahead: list[Inputs] = list(hidden.inputs(block))
    stages = list(other.stages(deepcopy(block), block))
    for inputs, stage in zip(ahead, stages, strict=True):
        assert inputs.roles == stage.roles
        for part, fold in zip(inputs.folds, stage.folds, strict=True):
            x = torch.cat(part).double()
            rounding = len(x) * 2.0**-24 * (x.abs().T @ x.abs())  # what float32 products may lose at most
            assert ((x.T @ x - fold.hessian).abs() <= rounding).all()
    hidden.advance(deepcopy(block), block)
    for one, two in zip(hidden.states, other.states, strict=True):
        assert torch.equal(one, two)

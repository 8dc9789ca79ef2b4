"""KL of every source at the end of a run, against the whole models."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from quantkit.calibration import divergence
from quantkit.calibration.activations import HiddenStates
from quantkit.calibration.samples import Source, joined
from quantkit.models.loading import load_block, load_model
from tests.support.memory import memory_checkpoint, tiny_config


def test_divergences_are_those_of_the_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "AT_A_TIME", 7)
    checkpoint = memory_checkpoint(tiny_config())
    rng = np.random.default_rng(0)
    parts = [(Source(name="a", kind="t", digest=""), [rng.integers(0, 90, n) for n in (20, 13)])]
    parts += [(Source(name="b", kind="t", digest=""), [rng.integers(0, 90, 11)])]
    parts += [(Source(name="short", kind="t", digest=""), [rng.integers(0, 90, 2)])]
    samples = joined(parts)
    hidden = HiddenStates(checkpoint, samples, skip_positions=2)
    original, changed = load_model(checkpoint), load_model(checkpoint)
    for layer in range(checkpoint.spec.num_hidden_layers):
        block = load_block(checkpoint, layer)
        other = deepcopy(block)
        other.mlp.up_proj.weight.mul_(0.9)
        changed.model.layers[layer].mlp.up_proj.weight.mul_(0.9)
        hidden.advance(other, block)
    found = divergence.divergences(checkpoint, samples, hidden)
    expected: list[list[float]] = [[], [], []]
    for row, origin in zip(samples.sequences, samples.origins, strict=True):
        ids = torch.from_numpy(row)[None]
        p, q = (model(ids)[0, 2:].double().log_softmax(-1) for model in (original, changed))
        expected[origin] += (p.exp() * (p - q)).sum(-1).tolist()
    assert found[0] == pytest.approx(np.mean(expected[0]), rel=1e-3)
    assert found[1] == pytest.approx(np.mean(expected[1]), rel=1e-3)
    assert found[2] is None

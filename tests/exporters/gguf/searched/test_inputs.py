"""Expected inputs against those of tokens that are drawn, and the order in which they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit import registry
from quantkit.exporters.gguf.searched.inputs import ExpectedInputs, silu_moments
from quantkit.models.spec import Role
from tests.support.gguf_models import WIDE, dense


@pytest.mark.parametrize(("together", "bound"), [(False, 0.03), (True, 0.25)])
def test_moments_of_gated_channels_are_those_of_normal_variables(together: bool, bound: float) -> None:
    """Of gates that are independent of what they gate; of others an estimate."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((12, 12)) * 0.5
    if not together:
        mix[:6, 6:] = mix[6:, :6] = 0
    drawn = rng.standard_normal((400_000, 12)) @ mix.T
    g, u = drawn[:, :6], drawn[:, 6:]
    moments = (mix @ mix.T).astype(np.float32)
    found = silu_moments(moments[:6, :6], moments[6:, 6:], moments[:6, 6:])
    gated = g / (1 + np.exp(-g)) * u
    true = gated.T @ gated / len(gated)
    size = np.sqrt(np.outer(np.diag(true), np.diag(true)))
    assert np.abs((found - true) / size).max() < bound


def test_energies_are_those_of_true_inputs_as_far_as_weights_tell(golden_model: Path) -> None:
    """The first block's inputs for tokens drawn evenly are nearly what is expected; see the module for later ones."""
    source = registry.open_checkpoint(golden_model)
    spec = source.spec
    inputs = ExpectedInputs(source)
    slots = {slot.role: slot for slot in spec.slots() if slot.layer == 0}
    table = np.asarray(source.weights["model.embed_tokens.weight"].read(), np.float32) * spec.scale_emb
    weights = np.asarray(source.weights[slots[Role.ATTN_NORM].name].read(), np.float32)
    normed = table / np.sqrt(np.square(table).mean(axis=1, keepdims=True)) * weights
    true, (found,) = np.square(normed).mean(axis=0), inputs.of(slots[Role.Q])
    assert np.corrcoef(np.log(true), np.log(np.diag(found)))[0, 1] > 0.9


def test_asking_for_an_earlier_layer_starts_again(golden_model: Path) -> None:
    source = registry.open_checkpoint(golden_model)
    inputs = ExpectedInputs(source)
    matrices = [slot for slot in source.spec.slots() if len(slot.shape) == 2]
    forth = {slot.name: inputs.of(slot) for slot in matrices}
    back = {slot.name: inputs.of(slot) for slot in reversed(matrices)}
    for slot in matrices:
        one, other = forth[slot.name], back[slot.name]
        assert sum(map(len, one)) == slot.shape[1]
        for first, second in zip(one, other, strict=True):
            assert np.array_equal(first, second)


def test_an_untied_table_is_read_row_by_row() -> None:
    source = dense({**WIDE, "tie_word_embeddings": False})
    embed = next(slot for slot in source.spec.slots() if slot.role is Role.EMBED)
    head = next(slot for slot in source.spec.slots() if slot.role is Role.LM_HEAD)
    inputs = ExpectedInputs(source)
    assert inputs.of(embed) is None
    assert inputs.of(head) is not None

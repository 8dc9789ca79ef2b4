"""A whole MiniCPM-SALA against its definition in loops, and decoded as it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantkit.errors import UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.reference.sala.session import SalaSession
from tests.support import sala_definition
from tests.support.memory import memory_checkpoint, random_arrays
from tests.support.sala_definition import SALA_CONFIG

IDS = np.random.default_rng(0).integers(0, 97, 64).tolist()
CLOSE = 1e-4


def model(**changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], Checkpoint]:
    config = {**SALA_CONFIG, **changes}
    arrays = random_arrays(memory_checkpoint(config).spec, seed=3)
    return config, arrays, memory_checkpoint(config, arrays)


@pytest.mark.parametrize("sparsely", [False, True])
@pytest.mark.parametrize("length", [1, 2, 39, 40, 64])
def test_it_is_what_is_defined(sparsely: bool, length: int) -> None:
    config, arrays, checkpoint = model()
    wanted = sala_definition.logits(config, arrays, IDS[:length], sparsely=sparsely)
    found = SalaSession(checkpoint, sparsely=sparsely).logits(IDS[:length])
    assert np.abs(found - wanted).max() <= CLOSE * np.abs(wanted).max()


def test_sparse_and_dense_part_where_the_config_says() -> None:
    _, _, checkpoint = model()
    sparse, dense = (SalaSession(checkpoint, sparsely=sparsely) for sparsely in (True, False))
    assert np.abs(sparse.logits(IDS[:39]) - dense.logits(IDS[:39])).max() == 0
    assert np.abs(sparse.logits(IDS[:40]) - dense.logits(IDS[:40]))[-1].max() > 0.01


def test_tokens_are_decoded_as_they_are_read() -> None:
    _, _, checkpoint = model()
    whole = SalaSession(checkpoint, sparsely=False).logits(IDS)
    session = SalaSession(checkpoint, sparsely=False)
    for length in (1, 2, 17, 18, 19, 64):
        found = session.next_logits(IDS[:length])
        np.testing.assert_allclose(found, whole[length - 1], atol=CLOSE * np.abs(whole).max())


def test_another_text_begins_anew() -> None:
    _, _, checkpoint = model()
    session = SalaSession(checkpoint)
    session.next_logits(IDS[:30])
    other = [*IDS[:10], 5, *IDS[11:33]]
    np.testing.assert_array_equal(session.next_logits(other), SalaSession(checkpoint).next_logits(other))
    np.testing.assert_array_equal(session.next_logits(other[:20]), SalaSession(checkpoint).next_logits(other[:20]))


def test_many_prompts_are_each_their_own() -> None:
    session = SalaSession(model()[2])
    prompts = [IDS[:50], IDS[7:30], IDS[:1]]
    for prompt, prediction in zip(prompts, session.predictions(prompts, int8_run=None), strict=True):
        np.testing.assert_allclose(prediction.exact, session.logits(prompt), atol=1e-4)


def test_choices_of_softmax_layers_are_told() -> None:
    told: list[int] = []
    SalaSession(model()[2], observer=lambda layer, group, first, blocks: told.append(layer)).logits(IDS)
    assert told == [0, 0, 3, 3]


def test_states_do_not_grow() -> None:
    checkpoint = model()[2]
    lightning = checkpoint.spec.lightning
    assert lightning is not None
    session = SalaSession(checkpoint)
    for length in (5, 60):
        session.next_logits(IDS[:length])
        states = session._memory.lightning
        assert sorted(states) == [1, 2]
        assert sum(one.state.nbytes for one in states.values()) == lightning.state_bytes


def test_sparse_attention_must_be_described() -> None:
    checkpoint = model(sparse_config=None)[2]
    SalaSession(checkpoint, sparsely=False).logits(IDS[:5])
    with pytest.raises(UnsupportedModel, match="no sparse_config"):
        SalaSession(checkpoint)

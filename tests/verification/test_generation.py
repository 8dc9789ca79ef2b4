"""Generation over a session that follows a script: what is chosen, when it stops, and that a seed repeats it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from quantkit.errors import BadOption, NonFiniteValues
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.generation import choose, generated_tokens
from tests.support.memory import memory_checkpoint, tiny_config


class Scripted:
    """Wants the token after the last one, modulo 5; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def next_logits(self, token_ids):
        self.asked.append(list(token_ids))
        return np.eye(5, dtype=np.float32)[(token_ids[-1] + 1) % 5]


def test_greedy_generation_follows_the_most_likely_token():
    session = Scripted()
    assert list(generated_tokens(session, [0, 1], max_tokens=4, eos_token_ids=())) == [2, 3, 4, 0]
    assert session.asked == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_any_end_token_ends_it_and_is_not_given_out():
    assert list(generated_tokens(Scripted(), [0], max_tokens=9, eos_token_ids=(4, 3))) == [1, 2]


def test_it_computes_nothing_before_the_first_token_is_asked_for():
    session = Scripted()
    tokens = generated_tokens(session, [0], max_tokens=9, eos_token_ids=())
    assert session.asked == []
    next(tokens)
    assert len(session.asked) == 1


def test_equals_go_to_the_lowest_id():
    assert choose(np.array([0, 3, 3], np.float32), np.random.default_rng(0), temperature=0, top_p=1) == 1


def test_sampled_shares_are_the_softmax_at_the_temperature():
    logits = np.log(np.array([1, 2, 4, 1], np.float32))
    rng = np.random.default_rng(0)
    drawn = Counter(choose(logits, rng, temperature=0.5, top_p=1) for _ in range(4000))
    expected = np.array([1, 4, 16, 1]) / 22  # shares squared
    sigma = np.sqrt(expected * (1 - expected) / 4000)
    for token, share in enumerate(expected):
        assert abs(drawn[token] / 4000 - share) < 4 * sigma[token]


@pytest.mark.parametrize(
    ("top_p", "possible"), [(0.4, {2}), (0.5, {2}), (0.51, {1, 2}), (0.76, {1, 2, 0}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, possible):
    logits = np.log(np.array([1, 2, 4, 1], np.float32) / 8) + 3  # equals: the lower id first
    rng = np.random.default_rng(0)
    assert {choose(logits, rng, temperature=1, top_p=top_p) for _ in range(300)} == possible


def test_what_cannot_be_is_never_drawn():
    logits = np.array([0, -np.inf, 0], np.float32)
    rng = np.random.default_rng(0)
    assert {choose(logits, rng, temperature=5, top_p=1) for _ in range(200)} == {0, 2}


def test_a_tiny_temperature_is_greedy():
    rng = np.random.default_rng(0)
    assert choose(np.array([80, 90, 85], np.float32), rng, temperature=1e-30, top_p=1) == 1


def test_the_same_seed_gives_the_same_text():
    checkpoint = memory_checkpoint(tiny_config())

    def sample(seed: int) -> list[int]:
        session = ReferenceSession(checkpoint)
        return list(generated_tokens(session, [1], max_tokens=20, eos_token_ids=(), temperature=1.0, seed=seed))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(BadOption):
        next(generated_tokens(Scripted(), [0], max_tokens=1, eos_token_ids=(), **options))


def test_an_empty_prompt_is_refused():
    with pytest.raises(BadOption, match="no tokens"):
        next(generated_tokens(Scripted(), [], max_tokens=1, eos_token_ids=()))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_stop_it(temperature):
    with pytest.raises(NonFiniteValues):
        choose(np.array([0, np.nan]), np.random.default_rng(0), temperature=temperature, top_p=1)

"""Lightning attention: the recurrence, chunks of any size and the sum over all pairs are one function."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.runtimes.reference.sala.lightning import CHUNK, Lightning, slopes
from tests.support import sala_definition
from tests.support.sparse_definition import splits

CLOSE = 1e-5


def arrays(rng: np.random.Generator, heads: int, tokens: int, channels: int) -> list[np.ndarray]:
    return [rng.standard_normal((heads, tokens, channels)).astype(np.float32) for _ in range(3)]


def test_slopes_are_published_numbers() -> None:
    assert slopes(8).tolist() == [2.0**-number for number in range(1, 9)]
    assert slopes(32)[[0, 3, 31]] == pytest.approx([2**-0.25, 0.5, 2**-8])
    assert slopes(1).tolist() == [2.0**-8]


@pytest.mark.parametrize("heads", [*range(1, 20), 31, 40])
def test_slopes_of_any_number_of_heads(heads: int) -> None:
    np.testing.assert_allclose(slopes(heads), sala_definition.slopes(heads), rtol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_calls_of_any_length_are_the_sum_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads, tokens, channels = int(rng.integers(1, 5)), int(rng.integers(1, 40)), int(rng.choice([2, 4, 8]))
    q, k, v = arrays(rng, heads, tokens, channels)
    attention, found, past = Lightning(heads, channels), [], 0
    for new in splits(tokens, int(rng.integers(1, tokens + 1)), int(rng.choice([1, 3, 9]))):
        part = slice(past, past + new)
        found.append(attention.attend(q[:, part], k[:, part], v[:, part]))
        past += new
    wanted = sala_definition.lightning(q, k, v)
    assert np.abs(np.concatenate(found) - wanted).max() <= CLOSE * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("tokens", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_chunks_are_the_recurrence_and_leave_its_state(tokens: int) -> None:
    q, k, v = arrays(np.random.default_rng(tokens), 4, tokens, 16)
    whole, one_by_one = Lightning(4, 16), Lightning(4, 16)
    at_once = whole.attend(q, k, v)
    stepped = [one_by_one.attend(*(x[:, t : t + 1] for x in (q, k, v))) for t in range(tokens)]
    np.testing.assert_allclose(at_once, np.concatenate(stepped), atol=CLOSE * np.abs(at_once).max())
    np.testing.assert_allclose(whole.state, one_by_one.state, atol=CLOSE * np.abs(whole.state).max())


def test_a_first_token_is_its_own_value_times_its_score() -> None:
    q, k, v = (np.full((1, 1, 4), value, np.float32) for value in (1.0, 2.0, 3.0))
    assert Lightning(1, 4).attend(q, k, v).tolist() == [[8 / 2 * 3] * 4]


def test_a_token_is_forgotten_at_the_rate_of_its_head() -> None:
    attention = Lightning(2, 2)
    ones, none = np.ones((2, 1, 2), np.float32), np.zeros((2, 1, 2), np.float32)
    attention.attend(ones, ones, ones)
    later = attention.attend(ones, none, none)
    np.testing.assert_allclose(later[0], np.repeat(np.sqrt(2) * np.exp(-slopes(2)), 2), rtol=1e-6)

"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.verification.metrics import (
    CHUNK_ELEMENTS,
    Agreement,
    compared,
    kl_divergence,
    log_softmax,
    max_abs_log_prob_difference,
    perplexity,
    same_favourites,
    surprise,
    top1_agreement,
)

# Distributions (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2) as log-probabilities, each row shifted by its own constant.
P = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], np.float32)) + np.array([[3.0], [-7.0]], np.float32)
Q = np.log(np.array([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]], np.float32))


def test_log_softmax_gives_the_logarithms_of_the_shares():
    shares = np.array([[1 / 6, 2 / 6, 3 / 6]])
    assert log_softmax(np.log(np.array([[2.0, 4.0, 6.0]]))) == pytest.approx(np.log(shares), abs=1e-15)


def test_log_softmax_of_huge_logits_does_not_overflow():
    assert log_softmax(np.array([[3e38, 3e38]], np.float32)) == pytest.approx(np.full((1, 2), -math.log(2)))


def test_kl_is_the_mean_over_positions_of_the_textbook_sum():
    # First row: 1/2 ln(2) + 1/4 ln(1) + 1/4 ln(1/2) = ln(2)/4. Second row: 0.
    assert kl_divergence(P, Q) == pytest.approx(math.log(2) / 8, abs=1e-7)


def test_kl_is_not_symmetric():
    a = np.log(np.array([[0.9, 0.1]]))
    b = np.log(np.array([[0.5, 0.5]]))
    assert kl_divergence(a, b) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert kl_divergence(b, a) == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))


def test_a_model_does_not_diverge_from_itself():
    logits = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32) * 30
    assert kl_divergence(logits, logits + np.float32(2)) < 1e-6
    assert max_abs_log_prob_difference(logits, logits) == 0
    assert top1_agreement(logits, logits) == 1


def test_the_largest_log_prob_difference_is_found_wherever_it_is():
    assert max_abs_log_prob_difference(P, Q) == pytest.approx(math.log(2), abs=1e-6)
    assert max_abs_log_prob_difference(P[1:], Q[1:]) == pytest.approx(0, abs=1e-6)


def test_another_choice_weighs_as_much_as_the_lead_it_overturns():
    p = np.log(np.array([[0.5, 0.3, 0.2], [0.4, 0.2, 0.4], [0.1, 0.1, 0.8]]))
    first = p.copy()
    first[0] = [0, 9, 0]
    last = first.copy()
    last[2] = [9, 0, 0]
    same, other, worst = compared(p + 7, p, first, last)
    assert (same.lost_lead, same.same_next_token, same.top1) == (0, True, 1)
    assert (other.lost_lead, other.same_next_token) == (pytest.approx(np.log(5 / 3)), True)
    assert (worst.lost_lead, worst.same_next_token) == (pytest.approx(np.log(8)), False)


def test_top1_is_the_share_of_positions_with_the_same_favourite():
    assert top1_agreement(P, Q) == 0.5


def test_a_probability_of_zero_counts_as_the_floor():
    certain = np.array([[0.0, -np.inf]])
    nearly = np.array([[0.0, -95.0]])
    assert max_abs_log_prob_difference(certain, nearly) == 0
    assert kl_divergence(nearly, certain) == 0
    assert kl_divergence(np.log(np.array([[0.5, 0.5]])), certain) == pytest.approx(0.5 * 80 - math.log(2))


def test_perplexity_is_the_inverse_geometric_mean_of_the_shares_of_what_came():
    # Row 0 gave token 2 a share of 1/4, row 1 gave token 0 a share of 1/4; the last row predicts nothing that came.
    three = np.concatenate((P, P[:1]))
    assert perplexity(three, [1, 2, 0]) == pytest.approx(4.0, rel=1e-6)
    # Row 0 gave token 0 a share of 1/2, row 1 gave token 2 a share of 1/2.
    assert perplexity(three, [1, 0, 2]) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("broken", ["trusted", "tested", "both"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_position_that_is_no_distribution_agrees_in_nothing(broken, value):
    trusted, tested = np.zeros((2, 2, 3), np.float32)
    for name, logits in (("trusted", trusted), ("tested", tested)):
        if broken in (name, "both"):
            logits[1] = value
    with np.errstate(invalid="ignore"):
        (agreement,) = compared(trusted, tested)
    assert math.isnan(agreement.kl)
    assert math.isnan(agreement.max_abs_log_prob_difference)
    assert math.isnan(agreement.lost_lead)
    assert agreement.top1 == 0.5
    assert not agreement.same_next_token


def test_a_single_nan_in_a_long_prompt_is_not_lost_between_the_chunks():
    logits = np.zeros((3 * (CHUNK_ELEMENTS // 64) + 5, 64), np.float32)
    for position in (0, CHUNK_ELEMENTS // 64, len(logits) - 1):
        broken = logits.copy()
        broken[position, 63] = np.nan
        (agreement,) = compared(logits, broken)
        assert math.isnan(agreement.kl)
        assert math.isnan(agreement.max_abs_log_prob_difference)
        assert agreement.top1 < 1


def direct(p_logits: np.ndarray, q_logits: np.ndarray) -> Agreement:
    """The definitions word by word, everything at once, in extended precision where the machine has it."""
    p, q = (np.asarray(logits, np.longdouble) for logits in (p_logits, q_logits))
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
    best_p, best_q, rows = p_logits.argmax(axis=-1), q_logits.argmax(axis=-1), np.arange(len(p))
    return Agreement(
        kl=float((np.exp(p) * (p - q)).sum(axis=-1).mean()),
        top1=float((best_p == best_q).mean()),
        max_abs_log_prob_difference=float(np.abs(p - q).max()),
        lost_lead=float((p[rows, best_p] - p[rows, best_q]).max()),
        same_next_token=bool(best_p[-1] == best_q[-1]),
    )


def test_several_models_compared_at_once_have_the_figures_of_the_definitions():
    rng = np.random.default_rng(3)
    trusted = 3 * rng.standard_normal((41, 20_000)).astype(np.float32)  # several chunks, the last one shorter
    assert len(trusted) > 2 * (CHUNK_ELEMENTS // 20_000)
    assert len(trusted) % (CHUNK_ELEMENTS // 20_000)
    tested = [trusted + scale * rng.standard_normal(trusted.shape).astype(np.float32) for scale in (1e-5, 0.05, 1)]
    for agreement, logits in zip(compared(trusted, *tested), tested, strict=True):
        expected = direct(trusted, logits)
        # Float64 sums of 20 000 terms of order one over 20 000: errors of about 1e-16 times the log-probability.
        assert agreement.kl == pytest.approx(expected.kl, abs=1e-13)
        assert agreement.max_abs_log_prob_difference == pytest.approx(expected.max_abs_log_prob_difference, abs=1e-13)
        assert agreement.lost_lead == pytest.approx(expected.lost_lead, abs=1e-13)
        assert (agreement.top1, agreement.same_next_token) == (expected.top1, expected.same_next_token)


def test_a_model_compared_with_nothing_says_nothing():
    assert compared(np.zeros((1, 2), np.float32)) == ()


def test_the_share_of_favourites_is_that_of_the_sets():
    rng = np.random.default_rng(5)
    p = rng.standard_normal((30, 400)).astype(np.float32)
    q = p + rng.standard_normal(p.shape).astype(np.float32)
    for count in (1, 5, 20):
        best = [set(row) for row in np.argsort(p, axis=1)[:, -count:]]
        theirs = [set(row) for row in np.argsort(q, axis=1)[:, -count:]]
        expected = [len(a & b) / count for a, b in zip(best, theirs, strict=True)]
        assert same_favourites(p, q, count).tolist() == pytest.approx(expected)
    assert same_favourites(p, q, 1).mean() == top1_agreement(p, q)
    assert same_favourites(p[:, :3], q[:, :3], 5).tolist() == [1.0] * 30, "all of a vocabulary of three"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_position_that_is_no_distribution_shares_no_favourites(value):
    logits = np.zeros((2, 8), np.float32)
    broken = logits.copy()
    broken[1, 3] = value
    for pair in ((logits, broken), (broken, logits), (broken, broken)):
        assert same_favourites(*pair, 5).tolist() == [1.0, 0.0]


def test_surprise_is_told_for_every_token_that_came_across_chunks():
    logits = np.random.default_rng(6).standard_normal((3 * (CHUNK_ELEMENTS // 64) + 5, 64)).astype(np.float32)
    ids = np.random.default_rng(7).integers(0, 64, len(logits)).tolist()
    expected = [-log_softmax(logits[t])[ids[t + 1]] for t in range(len(ids) - 1)]
    assert surprise(logits, ids) == pytest.approx(expected, abs=1e-12)
    assert perplexity(logits, ids) == pytest.approx(math.exp(np.mean(expected)), rel=1e-12)

"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.verification.metrics import (
    kl_divergence,
    log_softmax,
    lost_lead,
    max_abs_log_prob_difference,
    perplexity,
    same_next_token,
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
    assert lost_lead(p, p) == 0
    assert same_next_token(p, p)
    other = p.copy()
    other[0] = [0, 9, 0]
    assert lost_lead(p + 7, other) == pytest.approx(np.log(5 / 3))
    assert same_next_token(p, other)
    other[2] = [9, 0, 0]
    assert lost_lead(p, other) == pytest.approx(np.log(8))
    assert not same_next_token(p, other)


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


def test_nan_is_never_agreement():
    logits = np.zeros((2, 3), np.float32)
    broken = logits.copy()
    broken[1, 2] = np.nan
    assert math.isnan(kl_divergence(logits, broken))
    assert math.isnan(max_abs_log_prob_difference(logits, broken))

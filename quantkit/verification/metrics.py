"""How far two models' predictions lie apart: small pure functions on logits [T, V], computed in float64.

P is the model that is trusted, Q the one under test; p = log_softmax(P), q = log_softmax(Q), natural logarithms. An
additive constant per row changes nothing, so engines that give log-probabilities compare with those that give logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOG_PROB_FLOOR = -80.0
"""Log-probabilities below it count as equal to it. Engines that report probabilities in float32 cannot tell anything
below about -87 from zero, and e^-80 is no probability that a model could be held to."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """x - log(sum(exp(x))) along the last axis, float64; shifted by the maximum so that exp cannot overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """Mean over positions of KL(P || Q) = sum_v e^p_v (p_v - q_v), in nats; 0 for equal models, never below."""
    p, q = _floored(p_logits), _floored(q_logits)
    # The floor makes the rows sum to a little more than 1, which could push a tiny KL below zero. NaN stays NaN.
    return float(np.maximum((np.exp(p) * (p - q)).sum(axis=-1).mean(), 0.0))


def max_abs_log_prob_difference(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """max |p - q| over all positions and tokens: the strictest of the measures. NaN anywhere gives NaN."""
    return float(np.abs(_floored(p_logits) - _floored(q_logits)).max())


def top1_agreement(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """Share of positions whose most likely token is the same, 0 to 1."""
    return float((p_logits.argmax(axis=-1) == q_logits.argmax(axis=-1)).mean())


def same_next_token(p_logits: np.ndarray, q_logits: np.ndarray) -> bool:
    """Whether the most likely token after the last position is the same."""
    return bool(p_logits[-1].argmax() == q_logits[-1].argmax())


def lost_lead(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """How clear what P chose was where Q chooses otherwise: the largest p[best of P] - p[best of Q], 0 if nowhere.

    Two tokens that P finds nearly as likely change places by rounding alone, and then it is as small as that.
    """
    p, position = log_softmax(p_logits), np.arange(len(p_logits))
    return float((p[position, p_logits.argmax(axis=-1)] - p[position, q_logits.argmax(axis=-1)]).max())


def perplexity(logits: np.ndarray, token_ids: Sequence[int]) -> float:
    """exp of the mean of -q over the tokens that came: row t is asked for token t + 1; needs two tokens or more."""
    following = np.asarray(token_ids[1:])
    came = log_softmax(logits[:-1])[np.arange(len(following)), following]
    return float(np.exp(-came.mean()))


def _floored(logits: np.ndarray) -> np.ndarray:
    floored: np.ndarray = np.maximum(log_softmax(logits), LOG_PROB_FLOOR)
    return floored

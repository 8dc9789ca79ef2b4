"""How far two models' predictions lie apart: pure functions on logits [T, V], computed in float64.

P is the model that is trusted, Q the one under test; p = log_softmax(P), q = log_softmax(Q), natural logarithms. An
additive constant per row changes nothing, so engines that give log-probabilities compare with those that give logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LOG_PROB_FLOOR = -80.0
"""Log-probabilities below it count as equal to it. Engines that report probabilities in float32 cannot tell anything
below about -87 from zero, and e^-80 is no probability that a model could be held to."""

CHUNK_ELEMENTS = 1 << 17
"""Logits compared at a time: their float64 arrays stay in a core's cache, and memory does not grow with the prompt."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far Q lies from P on one prompt. A row of which P or Q has NaN agrees in nothing, and its figures are NaN.

    kl: mean over positions of KL(P || Q) = sum_v e^p_v (p_v - q_v), in nats; 0 for equal models, never below.
    top1: share of positions whose most likely token is the same, 0 to 1.
    max_abs_log_prob_difference: max |p - q| over all positions and tokens, the strictest of the measures.
    lost_lead: how clear what P chose was where Q chooses otherwise: the largest p[best of P] - p[best of Q], 0 if
    nowhere. Two tokens that P finds nearly as likely change places by rounding alone; then it is as small as that.
    same_next_token: whether the most likely token after the last position is the same.
    """

    kl: float
    top1: float
    max_abs_log_prob_difference: float
    lost_lead: float
    same_next_token: bool


def compared(trusted: np.ndarray, *tested: np.ndarray) -> tuple[Agreement, ...]:
    """How far each of `tested` lies from `trusted`, all logits [T, V] with T at least 1.

    The log-softmax of each is computed once, a few positions at a time.
    """
    return tuple(row.agreement() for row in _compared(trusted, tested))


def _compared(trusted: np.ndarray, tested: Sequence[np.ndarray]) -> list[_Rows]:
    rows = [_Rows(len(trusted)) for _ in tested]
    for part in row_chunks(trusted):
        p, best_p = log_softmax(trusted[part]), trusted[part].argmax(axis=-1)
        floored = np.maximum(p, LOG_PROB_FLOOR)
        shares = np.exp(floored)
        for logits, row in zip(tested, rows, strict=True):
            q, best_q = log_softmax(logits[part]), logits[part].argmax(axis=-1)
            difference = np.subtract(floored, np.maximum(q, LOG_PROB_FLOOR, out=q), out=q)
            position = np.arange(len(p))
            row.kl[part] = np.einsum("tv,tv->t", shares, difference)
            undefined = np.isnan(row.kl[part])  # no share is zero, so a single NaN is enough
            row.largest[part] = np.abs(difference, out=difference).max(axis=-1)
            row.lost[part] = np.where(undefined, np.nan, p[position, best_p] - p[position, best_q])
            row.same[part] = (best_p == best_q) & ~undefined
    return rows


class _Rows:
    """The figures of each position."""

    def __init__(self, positions: int) -> None:
        self.kl, self.largest, self.lost = (np.empty(positions) for _ in range(3))
        self.same = np.empty(positions, bool)

    def agreement(self) -> Agreement:
        """The prompt's figures; the largest of numbers among which there is NaN is NaN."""
        return Agreement(
            # The floor makes shares sum to a little more than 1, which could push a tiny KL below zero.
            kl=float(np.maximum(self.kl.mean(), 0.0)),
            top1=float(self.same.mean()),
            max_abs_log_prob_difference=float(self.largest.max()),
            lost_lead=float(self.lost.max()),
            same_next_token=bool(self.same[-1]),
        )


def row_chunks(logits: np.ndarray) -> Iterator[slice]:
    """Runs of positions of logits [T, V] that are taken at a time."""
    positions, vocabulary = logits.shape
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """x - log(sum(exp(x))) along the last axis, float64; shifted by the maximum so that exp cannot overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def kl_divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """`Agreement.kl` of two models alone."""
    return compared(p_logits, q_logits)[0].kl


def kl_by_position(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    """KL of two models at each position, float64 [T], none below 0."""
    (rows,) = _compared(p_logits, [q_logits])
    return np.maximum(rows.kl, 0.0)


def max_abs_log_prob_difference(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """`Agreement.max_abs_log_prob_difference` of two models alone."""
    return compared(p_logits, q_logits)[0].max_abs_log_prob_difference


def top1_agreement(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """`Agreement.top1` of two models alone."""
    return compared(p_logits, q_logits)[0].top1


def same_favourites(p_logits: np.ndarray, q_logits: np.ndarray, count: int) -> np.ndarray:
    """What share of P's `count` most likely tokens are among Q's at each position, float64 [T].

    With a count of 1 its mean is `Agreement.top1`; where P or Q is no distribution nothing is shared.
    """
    shares = np.empty(len(p_logits))
    for part in row_chunks(p_logits):
        p, q = p_logits[part], q_logits[part]
        defined = np.isfinite(p.max(axis=-1)) & np.isfinite(q.max(axis=-1))  # a maximum does not lose a NaN
        shared = (_favourites(p, count)[:, :, None] == _favourites(q, count)[:, None, :]).any(axis=-1)
        shares[part] = np.where(defined, shared.mean(axis=-1), 0.0)
    return shares


def _favourites(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids of the most likely tokens, in any order, [T, count]; all there are where they are fewer."""
    if count == 1:
        best: np.ndarray = logits.argmax(axis=-1)[:, None]  # of equally likely ones the first
        return best
    first = max(logits.shape[-1] - count, 0)
    return np.argpartition(logits, first, axis=-1)[:, first:]


def surprise(logits: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
    """-q of the tokens that came, in nats, float64 [T - 1]: row t is asked for token t + 1."""
    following, asked = np.asarray(token_ids[1:]), logits[:-1]
    came = np.empty(len(following))
    for part in row_chunks(asked):
        came[part] = log_softmax(asked[part])[np.arange(len(following[part])), following[part]]
    return -came


def perplexity(logits: np.ndarray, token_ids: Sequence[int]) -> float:
    """exp of the mean of `surprise`; needs two tokens or more."""
    return float(np.exp(surprise(logits, token_ids).mean()))

"""What a model's own logits [T, V] tell of how far rounding may move its predictions: pure functions, in float64.

Logits l that are moved by small d_v cost KL = 1/2 Var_p(d), p = softmax(l): a quadratic form of the d_v with the matrix
diag(p) - p p^T. Its trace says what independent d_v cost on average, its square's trace how much chance decides of it
(Satterthwaite 1946, "An approximate distribution of estimates of variance components").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.verification.metrics import log_softmax, row_chunks

FLOAT16_BITS = 11
"""Significant bits of float16."""
FLOAT16_LEAST = -13
"""Exponent e of its smallest normal number m * 2^e, 1/2 <= m < 1: below it steps stay as large as there."""


@dataclass(frozen=True, slots=True)
class LogitFacts:
    """Of one prompt.

    positions: T. largest: max |l|. spread: mean over positions of Var_p(l), the variance of a position's logits under
    its own probabilities: logits that are all too small by a share s cost KL = s^2 * spread / 2.
    freedom: how many squares of independent normal numbers the KL of random errors amounts to, at least 1; few
    positions, each with two or three likely tokens, leave much to chance.
    """

    positions: int
    largest: float
    spread: float
    freedom: float

    @classmethod
    def of(cls, logits: np.ndarray) -> LogitFacts:
        """The facts of logits [T, V]."""
        largest = spread = trace = square = 0.0
        for part in row_chunks(logits):
            log_p = log_softmax(logits[part])
            p = np.exp(log_p)
            squares = np.square(p)
            largest = max(largest, float(np.abs(logits[part]).max()))
            spread += float(((p * np.square(log_p)).sum(axis=-1) - np.square((p * log_p).sum(axis=-1))).sum())
            trace += float((p * (1 - p)).sum())
            off_diagonal = np.square(squares.sum(axis=-1)) - np.square(squares).sum(axis=-1)
            square += float((np.square(p * (1 - p)).sum(axis=-1) + off_diagonal).sum())
        freedom = max(1.0, trace**2 / square) if square > 0 else 1.0
        return cls(len(logits), largest, spread / len(logits), freedom)


def facts_of(logits: Sequence[np.ndarray]) -> list[LogitFacts]:
    """The facts of every prompt."""
    return [LogitFacts.of(rows) for rows in logits]


def float16_cost(logits: np.ndarray) -> float:
    """KL that rounding logits [T, V] to float16 costs on average: 1/2 sum_v p_v (1 - p_v) step(l_v)^2 / 12."""
    cost = 0.0
    for part in row_chunks(logits):
        p = np.exp(log_softmax(logits[part]))
        _, exponent = np.frexp(np.abs(logits[part]))
        step = np.ldexp(1.0, np.maximum(exponent, FLOAT16_LEAST) - FLOAT16_BITS)
        cost += float((p * (1 - p) * np.square(step)).sum()) / 24
    return cost / len(logits)

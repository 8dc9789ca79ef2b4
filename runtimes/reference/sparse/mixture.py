"""Stage two: exact attention over chosen blocks, softmax(q k^T / sqrt(D)) v, a piece of the keys at a time."""

from __future__ import annotations

import numpy as np

SLACK = np.float32(12)
"""A row's shift follows its highest score so far from this far behind: exp(12) times too large is no loss in float32."""
LOWEST = np.float32(-1e30)
"""Shift of a row that has seen no key."""


class Mixture:
    """Values mixed by softmax for T tokens with R heads each, from pieces of keys in any order ("online softmax").

    Per token and head: sum of exp(score - shift) * value, sum of exp(score - shift), and the shift, which a higher
    score moves. q: (T, R, D).
    """

    def __init__(self, q: np.ndarray) -> None:
        self._q = q / np.float32(np.sqrt(q.shape[-1]))
        self._values = np.zeros(q.shape, np.float32)
        self._weights = np.zeros(q.shape[:2], np.float32)
        self._shift = np.full(q.shape[:2], LOWEST)

    def add(self, rows: slice | np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray | None) -> None:
        """Let some tokens see keys and values (n, D), but for those that are `hidden`, bool (rows, n)."""
        q = self._q[rows]
        tokens, heads, head_dim = q.shape
        scores = (q.reshape(-1, head_dim) @ k.T).reshape(tokens, heads, len(k))
        if hidden is not None:
            np.copyto(scores, np.float32(-np.inf), where=hidden[:, None])
        shift = self._shift[rows]
        highest = scores.max(axis=-1)
        behind = highest > shift + SLACK
        if behind.any():
            moved = np.where(behind, highest, shift)
            shrink = np.exp(shift - moved)
            self._values[rows] *= shrink[..., None]
            self._weights[rows] *= shrink
            self._shift[rows] = shift = moved
        scores -= shift[..., None]
        np.exp(scores, out=scores)
        self._weights[rows] += scores.sum(axis=-1)
        self._values[rows] += (scores.reshape(-1, len(k)) @ v).reshape(q.shape)

    def mixed(self) -> np.ndarray:
        """The values by their weights, (T, R, D)."""
        mixed: np.ndarray = self._values / self._weights[..., None]
        return mixed

"""Stage two: exact attention over chosen blocks, softmax(q k^T / sqrt(D)) v, a piece of the keys at a time."""

from __future__ import annotations

import numpy as np

from quantkit.runtimes.reference.sparse.memory import Rows

SLACK = np.float32(12)
"""A row's shift follows its highest score from this far behind: float32 loses nothing by a factor of exp(12)."""
LOWEST = np.float32(-1e30)
"""Shift of a row that has seen no key."""


class Mixture:
    """Values mixed by softmax for T tokens with R heads each, from pieces of keys in any order ("online softmax").

    Per token and head: sum of exp(score - shift) * value, sum of exp(score - shift), and the shift, which a higher
    score moves. q: (T, R, D) of tokens at `positions`; kept: keys and values, of which those of `group` are seen.
    """

    def __init__(self, q: np.ndarray, positions: np.ndarray, kept: tuple[Rows, Rows], group: int) -> None:
        self._q = q / np.float32(np.sqrt(q.shape[-1]))
        self._positions = positions
        self._kept = kept
        self._group = group
        self._values = np.zeros(q.shape, np.float32)
        self._weights = np.zeros(q.shape[:2], np.float32)
        self._shift = np.full(q.shape[:2], LOWEST)

    def add(self, rows: slice | np.ndarray, keys: slice, begins: np.ndarray | None = None) -> None:
        """Let some of the tokens see keys, none behind itself, and from where it `begins` for each of them (rows,)."""
        k, v = (kept.slice(self._group, keys.start, keys.stop) for kept in self._kept)
        hidden = self._hidden(self._positions[rows], np.arange(keys.start, keys.stop), begins)
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

    @staticmethod
    def _hidden(positions: np.ndarray, keys: np.ndarray, begins: np.ndarray | None) -> np.ndarray | None:
        """Which keys each token does not see, bool (rows, n); None where it sees all."""
        hidden = keys > positions[:, None] if keys[-1] > positions[0] else None
        if begins is None or not begins.any():
            return hidden
        before: np.ndarray = keys < begins[:, None]
        return before if hidden is None else hidden | before

    def mixed(self) -> np.ndarray:
        """The values by their weights, (T, R, D)."""
        mixed: np.ndarray = self._values / self._weights[..., None]
        return mixed

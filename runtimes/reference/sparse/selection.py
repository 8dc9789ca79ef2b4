"""Stage one: blocks are scored by means of their keys, and the best are chosen for each token and group of heads.

    S[t, i] = sum over the R heads of exp(q k1_i / sqrt(D)) / Z,  Z = sum over j of exp(q k2_j / sqrt(D))
    score of block b = max of S[t, i] over means i that overlap it

k1 are the fine means; k2 the coarse ones, or the fine ones again (`Variant.coarse`).
"""

from __future__ import annotations

import numpy as np

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.memory import Means, Memory
from quantkit.runtimes.reference.sparse.variants import Variant

NOTHING = np.float32(-1)
"""Score of a block that no mean belongs to: below that of one whose means are not seen, which is zero."""


class Selection:
    """Chooses blocks of a sequence. prompt: length of the prompt that is being read, None while decoding."""

    def __init__(self, sparse: SparseSpec, variant: Variant, memory: Memory, prompt: int | None) -> None:
        self._sparse = sparse
        self._variant = variant
        self._memory = memory
        self._prompt = prompt

    def chosen(self, scores: np.ndarray) -> np.ndarray:
        """Which blocks are chosen by such `scores` (T, B), bool (T, B).

        Among equal ones the first blocks are, where the kernels leave it open.
        """
        return top(scores, self._variant.chosen(self._sparse))

    def scores(self, group: int, q: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """What each position chooses by, (T, B), for queries q (T, R, D) of a group of heads.

        inf of blocks that always are chosen, -inf of those that never are. B is up to the last position's.
        """
        sparse, variant = self._sparse, self._variant
        own = (positions // sparse.block_size)[:, None]
        block = np.arange(own[-1, 0] + 1)
        scores = self._block_scores(group, q, positions, len(block))
        first_local = variant.first_local(sparse, positions)[:, None]
        if variant.adds_window:
            scores[block >= first_local] = -np.inf
        else:
            scores[block >= first_local] = np.inf
        scores[:, : sparse.init_blocks] = np.inf
        scores[block > own] = -np.inf
        if not variant.compresses_first:  # what has no mean has no score
            of_history = -(-self._memory.compressed // sparse.block_size)
            scores[scores == NOTHING] = -np.inf
            scores[:, of_history:] = -np.inf
        return scores

    def _block_scores(self, group: int, q: np.ndarray, positions: np.ndarray, blocks: int) -> np.ndarray:
        """The best score of the means of each block, (T, B): of those that begin in it, and of the one before them."""
        per_block = self._sparse.block_size // self._sparse.kernel_stride
        scores = self._mean_scores(group, q, positions)
        padded = np.full((len(q), blocks * per_block), NOTHING, np.float32)
        padded[:, : self._memory.fine.rows.length] = 0
        shared = min(scores.shape[1], padded.shape[1])
        padded[:, :shared] = scores[:, :shared]
        best: np.ndarray = padded[:, ::per_block].copy()
        for place in range(1, per_block):
            np.maximum(best, padded[:, place::per_block], out=best)
        if blocks > 1:
            np.maximum(best[:, 1:], padded[:, per_block - 1 : -1 : per_block], out=best[:, 1:])
        return best

    def _mean_scores(self, group: int, q: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """S of the means that any of the positions sees, (T, n); zero where one does not see it."""
        fine, unseen = self._products(self._memory.fine, group, q, positions)
        over, hidden = fine, unseen
        if self._variant.coarse:
            over, hidden = self._products(self._memory.coarse, group, q, positions)
        if hidden.any():
            over = np.where(hidden[:, None], np.float32(-np.inf), over)
        highest = over.max(axis=-1, keepdims=True, initial=-np.inf)  # (T, R, 1)
        highest[np.isneginf(highest)] = np.inf  # nothing to normalise by: all scores are zero
        # A mean that outweighs the coarse ones by exp(88) is infinitely good; where none are seen it is 0 / 0.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            normaliser = np.exp(over - highest).sum(axis=-1)  # (T, R)
            np.exp(np.subtract(fine, highest, out=fine), out=fine)
            summed: np.ndarray = ((1 / normaliser)[:, None] @ fine)[:, 0]
        summed[unseen] = 0
        np.nan_to_num(summed, copy=False, nan=0.0, posinf=np.inf)
        return summed

    def _products(
        self, means: Means, group: int, q: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """q k / sqrt(D) of the means that any of the positions sees, (T, R, n), and which one does not see, (T, n)."""
        seen = self._variant.seen(positions, means.kernel, means.stride, means=means.rows.length, prompt=self._prompt)
        tokens, heads, head_dim = q.shape
        keys = means.rows.slice(group, 0, int(seen.max()))
        products = (q / np.float32(np.sqrt(head_dim))).reshape(-1, head_dim) @ keys.T
        return products.reshape(tokens, heads, len(keys)), np.arange(len(keys)) >= seen[:, None]


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest of each row of scores (T, B) but for -inf, as bool (T, B); of equal ones the first."""
    rest = scores.shape[1] - count
    if rest <= 0:
        return scores > -np.inf
    lowest = np.partition(scores, rest, axis=-1)[:, rest, None]
    above, level = scores > lowest, scores == lowest
    room = count - above.sum(axis=-1, keepdims=True)
    chosen: np.ndarray = (above | (level & (level.cumsum(axis=-1) <= room))) & (scores > -np.inf)
    return chosen

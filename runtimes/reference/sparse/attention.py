"""Attention of one layer on one sequence, as it grows: dense while it is short, then over chosen blocks.

A prompt is read block by block of its keys: each block goes once through a product with the queries of all tokens that
chose it. What is chosen by all tokens of a query block (their window, mostly) is one product with these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.formulas import attend
from quantkit.runtimes.reference.sparse.memory import Memory, Rows
from quantkit.runtimes.reference.sparse.mixture import Mixture
from quantkit.runtimes.reference.sparse.selection import Selection
from quantkit.runtimes.reference.sparse.variants import Variant

RUN = 2048
"""Positions of a prompt that attend at a time; more of them choose a block together."""
SCORES = 1 << 22
"""Scores of a group of heads at a time: memory does not grow with a prompt's square."""
PIECE = 4096
"""Keys that the tokens of a query block see at a time."""
GATHERED = 16
"""Blocks that are copied out of the memory at a time: few enough to stay in a core's cache."""

Observer = Callable[[int, int, np.ndarray], None]
"""Told what was chosen: group of heads, first position, and which blocks each position from there on takes, (T, B).
Or by which scores: float32 (T, B), inf of blocks that always are chosen, -inf of those that never are."""


class SparseAttention:
    """Sparse attention with its memory.

    dtype: of keys and values that are remembered; everything is computed in float32. observer: told of every choice.
    scored: told of the scores that it is made by, before it is.

    Raises:
        BadOption: the variant cannot be run with this configuration.
    """

    def __init__(
        self,
        sparse: SparseSpec,
        variant: Variant,
        groups: int,
        head_dim: int,
        *,
        dtype: np.dtype | type = np.float32,
        observer: Observer | None = None,
        scored: Observer | None = None,
    ) -> None:
        variant.check(sparse)
        self._sparse = sparse
        self._variant = variant
        self._observer = observer
        self._scored = scored
        self.memory = Memory(sparse, groups, head_dim, np.dtype(dtype))

    def attend(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        *,
        unrotated: tuple[np.ndarray, np.ndarray] | None = None,
        prompt: int | None = None,
    ) -> np.ndarray:
        """What the next T tokens mix, (T, H * D), for q (H, T, D), k and v (G, T, D), rotated.

        q may be of the last few tokens alone, or of none: then only these attend, and the others are remembered.
        unrotated: q and k before that, which `use_nope` chooses by.
        prompt: length of the prompt that these tokens are a part of. What a code decides for a prompt at once is
        decided by it, so that a prompt in pieces gives what it gives whole. None: a single token behind others is
        decoded; more are a prompt that ends with them.
        """
        if (unrotated is None) == self._sparse.use_nope:
            raise ValueError("queries and keys before rotation are needed if, and only if, use_nope is set")
        history, new = self.memory.length, k.shape[1]
        if prompt is None and (new > 1 or history == 0):
            prompt = history + new
        by_q, by_k = (q, k) if unrotated is None else unrotated
        self.memory.extend(k, v)
        if self._variant.compresses_first:
            self.memory.compress(by_k)
        length = history + new if prompt is None else prompt
        first = history + new - q.shape[1]
        if q.shape[1] == 0:
            mixed = np.empty((0, len(q) * q.shape[2]), np.float32)
        elif self._variant.is_sparse(self._sparse, history=history, length=length):
            mixed = self._sparsely(q, by_q, first, prompt)
        else:
            mixed = self._densely(q, first)
        if not self._variant.compresses_first:
            self.memory.compress(by_k)
        return mixed

    def _densely(self, q: np.ndarray, first: int) -> np.ndarray:
        k, v = (rows.all() for rows in self._kept)
        mixed = []
        for run in _runs(q.shape[1], max(1, SCORES // (len(q) // len(k) * k.shape[1]))):
            seen = slice(first + run.stop)
            mixed.append(attend(q[:, run], k[:, seen], v[:, seen]))
        return np.concatenate(mixed)

    def _sparsely(self, q: np.ndarray, by_q: np.ndarray, first: int, prompt: int | None) -> np.ndarray:
        heads, new, head_dim = q.shape
        selection = Selection(self._sparse, self._variant, self.memory, prompt)
        mixed = np.empty((new, self._groups, heads // self._groups, head_dim), np.float32)
        by_group = q.reshape(self._groups, -1, new, head_dim)
        choosing = by_q.reshape(by_group.shape)
        for group in range(self._groups):
            for run in _runs(new, RUN):
                positions = np.arange(first + run.start, first + run.stop)
                chosen = self._chosen(selection, group, choosing[group][:, run].swapaxes(0, 1), positions)
                if self._observer is not None:
                    self._observer(group, int(positions[0]), chosen)
                queries = by_group[group][:, run].swapaxes(0, 1)  # (T, R, D)
                mix = self._mixed_for_one if len(positions) == 1 else self._mixed
                mixed[run, group] = mix(group, queries, positions, chosen)
        return mixed.reshape(new, heads * head_dim)

    def _chosen(self, selection: Selection, group: int, q: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """What each position of a run chooses, bool (T, B)."""
        means = max(1, self.memory.fine.rows.length)
        chosen = np.zeros((len(q), positions[-1] // self._sparse.block_size + 1), bool)
        for run in _runs(len(q), max(1, SCORES // (q.shape[1] * means))):
            scores = selection.scores(group, q[run], positions[run])
            if self._scored is not None:
                self._scored(group, int(positions[run][0]), scores)
            chosen[run, : scores.shape[1]] = selection.chosen(scores)
        return chosen

    def _mixed(self, group: int, q: np.ndarray, positions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Attention of tokens of a prompt to what they chose and to their window, (T, R, D)."""
        size = self._sparse.block_size
        start = self._variant.window_start(self._sparse, positions)
        block = np.arange(chosen.shape[1])
        whole = chosen | (block * size >= start[:, None])
        whole &= block <= positions[:, None] // size
        mixture = Mixture(q, positions, self._kept, group)
        left = whole.copy()
        for rows in _query_blocks(positions, size):
            first, last = _common(whole[rows])
            left[rows, first:] = False
            begin, end = first * size, min(last * size, int(positions[rows][-1]) + 1)
            for piece in _runs(end - begin, PIECE):
                keys = slice(begin + piece.start, begin + piece.stop)
                mixture.add(rows, keys)
        cut = np.where(start % size > 0, start // size, -1)  # the block that the window begins within
        cut[(cut < 0) | whole[np.arange(len(cut)), np.maximum(cut, 0)]] = -1
        for number in range(chosen.shape[1]):
            some = np.flatnonzero(left[:, number] | (cut == number))
            if len(some):
                keys = slice(number * size, min((number + 1) * size, self.memory.length))
                mixture.add(some, keys, np.where(cut[some] == number, start[some], 0))
        return mixture.mixed()

    def _mixed_for_one(self, group: int, q: np.ndarray, positions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """`_mixed` for a single token: what it sees is gathered, (1, R, D)."""
        size, (position,) = self._sparse.block_size, positions
        (start,) = self._variant.window_start(self._sparse, positions)
        block = np.arange(chosen.shape[1])
        numbers = np.flatnonzero(chosen[0] | ((block + 1) * size > start))
        tokens = (numbers[:, None] * size + np.arange(size)).reshape(-1)
        hidden = (tokens > position) | ((tokens < start) & ~np.repeat(chosen[0, numbers], size))
        pieces = [(numbers[run], slice(run.start * size, run.stop * size)) for run in _runs(len(numbers), GATHERED)]
        scaled = q[0] / np.float32(np.sqrt(q.shape[-1]))
        scores = np.empty((len(scaled), len(tokens)), np.float32)
        for some, keys in pieces:
            np.matmul(scaled, self.memory.keys.blocks(group, some).T, out=scores[:, keys])
        scores[:, hidden] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = np.zeros(q.shape, np.float32)
        for some, keys in pieces:
            mixed[0] += scores[:, keys] @ self.memory.values.blocks(group, some)
        mixed /= scores.sum(axis=-1, keepdims=True)
        return mixed

    @property
    def _groups(self) -> int:
        return self.memory.keys.groups

    @property
    def _kept(self) -> tuple[Rows, Rows]:
        return self.memory.keys, self.memory.values


def _common(whole: np.ndarray) -> tuple[int, int]:
    """The last run of blocks that all rows of (T, B) take, up to the last that any of them takes: first, last + 1."""
    taken = np.flatnonzero(whole.any(axis=0))
    end = int(taken[-1]) + 1 if len(taken) else 0
    missing = np.flatnonzero(~whole[:, :end].all(axis=0))
    return (int(missing[-1]) + 1 if len(missing) else 0), end


def _query_blocks(positions: np.ndarray, size: int) -> Iterator[slice]:
    """Runs of consecutive positions that lie in one block."""
    start = 0
    while start < len(positions):
        stop = min(len(positions), start + size - int(positions[start]) % size)
        yield slice(start, stop)
        start = stop


def _runs(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))

"""Text that repeats itself: noticed while it is written, and counted afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COPIES, LONGEST_PERIOD, SHORTEST = 3, 64, 24
"""A repetition is a stretch of at least so many copies of a period of at most so many tokens, and of at least so many
tokens. Rulers, tables and indentation of ordinary text stay below that."""
PERIODS = np.arange(1, LONGEST_PERIOD + 1)
ENOUGH = np.maximum((COPIES - 1) * PERIODS, SHORTEST - PERIODS)
"""Of each period: so many tokens in a row equal to those one period before them make a repetition."""


class LoopWatch:
    """Follows several sequences token by token and tells which of them repeat themselves."""

    def __init__(self, rows: int) -> None:
        self._equal = np.zeros((rows, LONGEST_PERIOD), np.int64)
        self._first = np.zeros((rows, 1), np.int64)

    def look(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Take in the tokens at `position` of ids [rows, length]; whether each row now ends in a repetition."""
        before = ids[:, max(0, position - LONGEST_PERIOD) : position][:, ::-1]
        reached = PERIODS[: before.shape[1]]
        seen = self._equal[:, : len(reached)]
        seen += 1
        seen *= (before == ids[:, position, None]) & (reached <= position - self._first)
        looping: np.ndarray = np.any(self._equal >= ENOUGH, axis=1)
        return looping

    def begin(self, row: int, position: int) -> None:
        """Let a new text begin at `position` of this row, which does not repeat what is before it."""
        self._equal[row] = 0
        self._first[row] = position


def repeated_tokens(sequences: Sequence[np.ndarray]) -> int:
    """How many tokens of the sequences lie in repetitions."""
    pieces = [piece for i, ids in enumerate(sequences) for piece in (ids, np.array([-1 - i]))]
    ids = np.concatenate(pieces)  # a token that occurs nowhere else parts them
    repeated = np.zeros(len(ids), bool)
    for period, enough in zip(PERIODS.tolist(), ENOUGH.tolist(), strict=True):
        equal = np.zeros(len(ids) + 1, np.int8)
        equal[period + 1 :] = ids[period:] == ids[:-period]
        edges = np.flatnonzero(np.diff(equal, append=0))
        for start, stop in edges.reshape(-1, 2):
            if stop - start >= enough:
                repeated[start - period : stop] = True
    return int(repeated.sum())

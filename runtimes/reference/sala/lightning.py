"""Lightning attention: linear attention that forgets at a constant rate, for each head its own.

    S_t = exp(-slope) S_{t-1} + k_t^T v_t,  o_t = q_t S_t / sqrt(D)

or, without the state, o_t = sum over s <= t of exp(-slope (t - s)) (q_t k_s) v_s / sqrt(D). The slopes are ALiBi's.
"""

from __future__ import annotations

import math

import numpy as np

CHUNK = 128
"""Tokens of a prompt that are taken together: products with them are as large as those with the state."""


def slopes(heads: int) -> np.ndarray:
    """How fast each head forgets, (H,): 2^(-8 i / H) for i = 1 to H, if H is a power of two.

    Else those of the next lower power of two, and of twice as many heads every other one, as many as are missing.
    Source: Press et al. 2021, "Train Short, Test Long".
    """
    whole = 1 << (heads.bit_length() - 1)
    first = np.exp2(-8 / whole * np.arange(1, whole + 1))
    between = np.exp2(-8 / (2 * whole) * np.arange(1, 2 * whole + 1, 2))
    rates: np.ndarray = np.concatenate((first, between[: heads - whole])).astype(np.float32)
    return rates


class Lightning:
    """Lightning attention with its state, (H, D, D) in float32, whatever the length of the sequence."""

    def __init__(self, heads: int, head_dim: int) -> None:
        self.state = np.zeros((heads, head_dim, head_dim), np.float32)
        self._slopes = slopes(heads)

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """What the next T tokens mix, (T, H * D), for q, k and v (H, T, D), normed and rotated."""
        heads, new, head_dim = q.shape
        q = q / np.float32(math.sqrt(head_dim))
        if new == 1:
            mixed = self.step(q, k, v)
        else:
            parts = (slice(start, start + CHUNK) for start in range(0, new, CHUNK))
            mixed = np.concatenate([self.chunk(q[:, part], k[:, part], v[:, part]) for part in parts], axis=1)
        by_position: np.ndarray = mixed.swapaxes(0, 1)
        return by_position.reshape(new, heads * head_dim)

    def step(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The recurrence for one token: q (scaled), k, v and the result are (H, 1, D)."""
        self.state *= np.exp(-self._slopes)[:, None, None]
        self.state += k.swapaxes(1, 2) * v
        mixed: np.ndarray = q @ self.state
        return mixed

    def chunk(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The same for C tokens at once, (H, C, D): among themselves by products of all, and by the state before."""
        size = q.shape[1]
        place = np.arange(size)
        distance = place[:, None] - place
        ages = np.where(distance >= 0, distance, np.inf).astype(np.float32)
        among = (q @ k.swapaxes(1, 2)) * self._kept(ages)  # (H, C, C)
        before = (q * self._kept(place + 1)[..., None]) @ self.state
        self.state *= self._kept(size)[:, None, None]
        self.state += (k * self._kept(size - 1 - place)[..., None]).swapaxes(1, 2) @ v
        mixed: np.ndarray = among @ v + before
        return mixed

    def _kept(self, ages: np.ndarray | int) -> np.ndarray:
        """What is left of each head's state after so many tokens, (H, *ages.shape)."""
        rates = self._slopes.reshape(-1, *(1,) * np.ndim(ages))
        kept: np.ndarray = np.exp(-rates * np.asarray(ages, np.float32))
        return kept

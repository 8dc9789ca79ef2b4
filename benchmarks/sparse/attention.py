"""Attention of one layer at the shape of MiniCPM4-8B, dense and sparse, in each runtime.

Another runtime is another entry of `ATTENTIONS`: two classes with these three methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.memory import Memory
from quantkit.runtimes.reference.sparse.mixture import Mixture
from quantkit.runtimes.reference.sparse.variants import DEFAULT

HEADS, GROUPS, HEAD_DIM = 32, 2, 128
SPARSE = SparseSpec(dense_len=0)
"""The published defaults, but sparse at any length."""
ROWS, PIECE = 64, 4096
"""Tokens and keys that dense attention takes at a time: measured, the fastest of 32 to 256 and of 512 to 4096."""


class Attention(Protocol):
    """Keys and values of a sequence, and attention to them. q: (H, T, D); k and v: (G, T, D)."""

    def fill(self, k: np.ndarray, v: np.ndarray) -> None:
        """Remember tokens that nobody asks about."""
        ...

    def read(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, prompt: int) -> object:
        """Attention of the next tokens of a prompt of so many."""
        ...

    def decode(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> object:
        """Attention of one more token."""
        ...


class DenseNumpy:
    """The fastest dense attention that numpy was found to do, on the caches that the sparse one has.

    A token is decoded by two products with all keys and all values. A prompt is read by an online softmax, whose
    scores stay in a core's cache: 0.7 of the seconds of `formulas.attend`, which makes them at once.
    """

    def __init__(self) -> None:
        self._memory = Memory(SPARSE, GROUPS, HEAD_DIM, np.dtype(np.float32))

    def fill(self, k: np.ndarray, v: np.ndarray) -> None:
        """See `Attention`."""
        self._memory.extend(k, v)

    def read(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, prompt: int) -> np.ndarray:
        """See `Attention`."""
        history, new = self._memory.length, q.shape[1]
        self._memory.extend(k, v)
        kept = (self._memory.keys, self._memory.values)
        mixed = []
        for group, queries in enumerate(q.reshape(GROUPS, -1, new, HEAD_DIM)):
            mixture = Mixture(queries.swapaxes(0, 1), np.arange(history, history + new), kept, group)
            for start in range(0, new, ROWS):
                stop = min(start + ROWS, new)
                for first in range(0, history + stop, PIECE):
                    mixture.add(slice(start, stop), slice(first, min(first + PIECE, history + stop)))
            mixed.append(mixture.mixed())
        return np.concatenate(mixed, axis=1)

    def decode(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """See `Attention`."""
        self._memory.extend(k, v)
        mixed = []
        for group, queries in enumerate(q.reshape(GROUPS, -1, HEAD_DIM) / np.float32(np.sqrt(HEAD_DIM))):
            keys, values = (
                kept.slice(group, 0, self._memory.length) for kept in (self._memory.keys, self._memory.values)
            )
            scores = queries @ keys.T
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed.append(scores @ values / scores.sum(axis=-1, keepdims=True))
        return np.concatenate(mixed)


class SparseNumpy:
    """The reference's."""

    def __init__(self) -> None:
        self._attention = SparseAttention(SPARSE, DEFAULT, GROUPS, HEAD_DIM)

    def fill(self, k: np.ndarray, v: np.ndarray) -> None:
        """See `Attention`."""
        self._attention.memory.extend(k, v)
        self._attention.memory.compress(k)

    def read(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, prompt: int) -> np.ndarray:
        """See `Attention`."""
        return self._attention.attend(q, k, v, prompt=prompt)

    def decode(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """See `Attention`."""
        return self._attention.attend(q, k, v)


class OnnxRuntime:
    """Attentions of `benchmarks/sparse_onnx.py`, which draws what they see: only lengths matter. room: tokens, at most.

    Dense is what onnxruntime does fastest: GroupQueryAttention for a prompt, MatMul and Softmax for a token.
    """

    def __init__(self, reading: str, decoding: str, room: int) -> None:
        from benchmarks import sparse_onnx  # noqa: PLC0415 - an extra

        made = {kind: sparse_onnx.ATTENTIONS[kind](room) for kind in {reading, decoding}}
        self._reading, self._decoding, self._piece = made[reading], made[decoding], sparse_onnx.PIECE
        self._length = 0

    def fill(self, k: np.ndarray, v: np.ndarray) -> None:
        """See `Attention`."""
        self._length += k.shape[1]

    def read(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, prompt: int) -> None:
        """See `Attention`; in pieces."""
        for start in range(0, k.shape[1], self._piece):
            new = min(self._piece, k.shape[1] - start)
            self._reading(self._length, new, prompt)
            self._length += new

    def decode(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """See `Attention`."""
        self._decoding(self._length, 1, 0)
        self._length += 1


ATTENTIONS: Mapping[str, Mapping[str, Callable[[int], Attention]]] = {
    "numpy": {"dense": lambda room: DenseNumpy(), "sparse": lambda room: SparseNumpy()},
    "onnxruntime": {
        "dense": lambda room: OnnxRuntime("gqa", "matmul", room),
        "sparse": lambda room: OnnxRuntime("sparse", "sparse", room),
    },
}
"""By runtime: made for so many tokens at most."""

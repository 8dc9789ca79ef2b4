"""What sparse attention remembers of one sequence in one layer: keys, values, and means of keys."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from quantkit.models.spec import COARSE, SparseSpec


class Rows:
    """Vectors of G heads that grow at their end, (G, length, D), in a buffer that doubles when it is full.

    The buffer holds a multiple of `block` rows, zeros behind the last, so that whole blocks can be taken from it.
    """

    def __init__(self, groups: int, head_dim: int, dtype: np.dtype, block: int) -> None:
        self.groups = groups
        self._block = block
        self._buffer = np.zeros((groups, block, head_dim), dtype)
        self.length = 0

    def extend(self, rows: np.ndarray) -> None:
        """Append rows (G, T, D)."""
        stop = self.length + rows.shape[1]
        if stop > self._buffer.shape[1]:
            groups, room, head_dim = self._buffer.shape
            blocks = -(-max(stop, 2 * room) // self._block)
            buffer = np.zeros((groups, blocks * self._block, head_dim), self._buffer.dtype)
            buffer[:, : self.length] = self._buffer[:, : self.length]
            self._buffer = buffer
        self._buffer[:, self.length : stop] = rows
        self.length = stop

    def slice(self, group: int, start: int, stop: int) -> np.ndarray:
        """Rows of a group, (stop - start, D) in float32."""
        rows: np.ndarray = self._buffer[group, start:stop].astype(np.float32, copy=False)
        return rows

    def all(self) -> np.ndarray:
        """Rows of all groups, (G, length, D) in float32."""
        rows: np.ndarray = self._buffer[:, : self.length].astype(np.float32, copy=False)
        return rows

    def blocks(self, group: int, numbers: np.ndarray) -> np.ndarray:
        """Whole blocks of a group by their numbers, one behind the other, (len(numbers) * block, D) in float32.

        numbers: in rising order. What lies together is not copied.
        """
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            return self.slice(group, int(numbers[0]) * self._block, (int(numbers[-1]) + 1) * self._block)
        _, room, head_dim = self._buffer.shape
        blocks = self._buffer[group].reshape(room // self._block, self._block, head_dim)[numbers]
        rows: np.ndarray = blocks.reshape(-1, head_dim).astype(np.float32, copy=False)
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are there."""
        return self._buffer[:, : self.length].nbytes


class Means:
    """Means of `kernel` keys in a row, `stride` apart: mean i is of the keys from i * stride on, (G, n, D) in float32.

    Only keys that a later mean needs are kept, fewer than `kernel + stride`; `averaged` counts those that went into
    means, each as often as it did.
    """

    def __init__(self, groups: int, head_dim: int, kernel: int, stride: int) -> None:
        self.kernel, self.stride = kernel, stride
        self.rows = Rows(groups, head_dim, np.dtype(np.float32), 1)
        self.averaged = 0
        self._tail = np.zeros((groups, 0, head_dim), np.float32)

    def extend(self, keys: np.ndarray) -> None:
        """Take in keys (G, T, D), in the order of their positions."""
        self._tail = np.concatenate((self._tail, keys), axis=1)
        count = (self._tail.shape[1] - self.kernel) // self.stride + 1
        if count <= 0:
            return
        windows = sliding_window_view(self._tail, self.kernel, axis=1)[:, : count * self.stride : self.stride]
        self.rows.extend(windows.mean(axis=-1))  # (G, count, D, kernel)
        self.averaged += count * self.kernel
        self._tail = self._tail[:, count * self.stride :].copy()


class Memory:
    """Of a sequence so far, `length` tokens of G heads with D channels.

    dtype: of keys and values that are kept. Keys are averaged in float32, as they come, and their means kept in it:
    they are few, and rounded to bfloat16 they choose other blocks for one token in nine at 32K.
    """

    def __init__(self, sparse: SparseSpec, groups: int, head_dim: int, dtype: np.dtype) -> None:
        self.keys = Rows(groups, head_dim, dtype, sparse.block_size)
        self.values = Rows(groups, head_dim, dtype, sparse.block_size)
        self.fine = Means(groups, head_dim, sparse.kernel_size, sparse.kernel_stride)
        self.coarse = Means(groups, head_dim, COARSE * sparse.kernel_size, COARSE * sparse.kernel_stride)
        self.compressed = 0  # tokens whose keys have been taken into the means, where they fill one

    @property
    def length(self) -> int:
        """Tokens whose keys and values are kept."""
        return self.keys.length

    def extend(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Append keys and values (G, T, D)."""
        self.keys.extend(keys)
        self.values.extend(values)

    def compress(self, keys: np.ndarray) -> None:
        """Take keys (G, T, D) into the means; they are those of `extend`, or what they were before rotation."""
        self.fine.extend(keys)
        self.coarse.extend(keys)
        self.compressed += keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and means."""
        return sum(rows.nbytes for rows in (self.keys, self.values, self.fine.rows, self.coarse.rows))

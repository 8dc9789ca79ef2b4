"""Marlin's order of codes and scales, as the kernel's authors construct it."""

from __future__ import annotations

import numpy as np


def reference_permutation() -> np.ndarray:
    """Where each of 1024 nibbles of a row of 16 x 16 tiles comes from, as the kernel's authors construct it.

    A lane holds, of each of four tiles, rows 2t, 2t+1, 2t+8, 2t+9 (t = lane % 4) of columns lane // 4 and that + 8;
    within every eight the even places come before the odd ones.
    """
    places = []
    for lane in range(32):
        for tile in range(4):
            eight = []
            for column in (lane // 4, lane // 4 + 8):
                for row in (0, 1, 8, 9):
                    eight.append(256 * tile + 16 * (2 * (lane % 4) + row) + column)
            places += eight[0::2] + eight[1::2]
    return np.array(places)


def reference_pack(codes: np.ndarray) -> np.ndarray:
    """Codes (n, k) in Marlin's order by way of the permutation, words as Python integers: (k / 16, 2 n)."""
    n, k = codes.shape
    tiles = codes.T.reshape(k // 16, 16, n // 16, 16).transpose(0, 2, 1, 3).reshape(k // 16, -1, 1024)
    nibbles = tiles[:, :, reference_permutation()].reshape(k // 16, 2 * n, 8).astype(object)
    words: np.ndarray = sum(nibbles[:, :, i] * 16**i for i in range(8))
    return words.astype(np.uint32)


def grouped_permutation() -> list[int]:
    return [i + 8 * j for i in range(8) for j in range(8)]


def single_permutation() -> list[int]:
    return [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]

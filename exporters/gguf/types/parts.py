"""What a block is made of, and what a module of this package knows about a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Blocks taken apart; n of them, in k sub-blocks each where the type has some.

    codes: uint8 (n, elements). d: float16 (n), what sub-blocks' scales are multiples of; of MXFP4 its exponent, uint8.
    scales: uint8 (n, k), int8 of Q6_K; None for types without sub-blocks. dmin, mins: the same of minimums, float16 (n)
    and uint8 (n, k), of the types that have them.
    """

    codes: np.ndarray
    d: np.ndarray
    scales: np.ndarray | None = None
    dmin: np.ndarray | None = None
    mins: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a type lies in bytes.

    block: its name, number and size. sub_block: weights that share a scale. pack: parts to uint8 (n, nbytes).
    unpack: its inverse. values: the float32 weights (n, elements), computed in ggml's order of operations.
    """

    block: BlockType
    sub_block: int
    pack: Callable[[Parts], np.ndarray]
    unpack: Callable[[np.ndarray], Parts]
    values: Callable[[Parts], np.ndarray]


def halves(raw: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte `start` of every block of uint8 (n, nbytes)."""
    found: np.ndarray = np.ascontiguousarray(raw[:, start : start + 2]).view("<f2")[:, 0].astype(np.float16)
    return found


def half_bytes(values: np.ndarray) -> np.ndarray:
    """float16 (n) as uint8 (n, 2)."""
    return np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)

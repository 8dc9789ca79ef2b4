"""What is measured of the inputs of a model's matrices, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Importance:
    """Sums of squares that are measured when they are asked for, so that a container can be planned before.

    weights: names of the matrices whose inputs are measured. text: name of the file. chunks, length: so many pieces of
    it, each of so many tokens.
    squares: by weight name, the sum over all tokens of x², of the inputs x of that matrix: float32 [cols]; called once.
    """

    weights: tuple[str, ...]
    text: str
    chunks: int
    length: int
    squares: Callable[[], Mapping[str, np.ndarray]]

    @property
    def tokens(self) -> int:
        """How many are summed over."""
        return self.chunks * self.length

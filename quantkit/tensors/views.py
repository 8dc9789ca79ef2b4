"""Lazy tensors: a name, a dtype, a shape, and an explicit way to read rows.

Nothing is read until `rows` or `read` is called, and every call reads anew: no caching, no memory mapping (an
input that is truncated while mapped kills the process; `pread` returns an error instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK_ELEMENTS = 1 << 20
"""Elements per chunk when a tensor is streamed: small enough for the cache, large enough to amortise a call."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """An unquantized tensor somewhere on disk.

    fetch(start, stop) returns rows [start, stop) along the first axis as a C-contiguous array of `dtype`
    and shape (stop - start, *shape[1:]); for a scalar, fetch(0, 1) returns the scalar.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[int, int], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in `dtype`."""
        return self.size * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Length of the first axis; a scalar counts as one row."""
        return self.shape[0] if self.shape else 1

    def read(self) -> np.ndarray:
        """The whole tensor."""
        return self.fetch(0, self.rows)

    def chunks(self, elements: int = CHUNK_ELEMENTS) -> Iterator[np.ndarray]:
        """The tensor as consecutive runs of whole rows of about `elements` elements each."""
        step = max(1, elements // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.rows, step):
            yield self.fetch(start, min(start + step, self.rows))


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedView:
    """A quantized weight matrix somewhere on disk, or about to be computed; `read` gives codes and parameters.

    stored_as: the container's name for how it lies there, where it has several for the same numbers ("tq2_0").
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    read: Callable[[], QuantizedTensor]
    stored_as: str | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def dequantized_chunks(self, elements: int = CHUNK_ELEMENTS) -> Iterator[np.ndarray]:
        """The float32 weights in runs of whole rows; the codes are in memory, values only of a few rows at a time."""
        tensor = self.read()
        step = max(1, elements // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield tensor.part(slice(start, start + step)).dequantized()


Weight = TensorView | QuantizedView


def values_view(name: str, tensor: QuantizedTensor) -> TensorView:
    """The float32 weights of a quantized matrix in memory, computed for the rows that are asked for."""
    return TensorView(
        name, np.dtype(np.float32), tensor.shape, lambda start, stop: tensor.part(slice(start, stop)).dequantized()
    )


def grid_of(weight: Weight) -> Scheme | None:
    """The scheme of a quantized weight, whatever its scales are stored in; None when it is dense."""
    if isinstance(weight, TensorView):
        return None
    try:
        return weight.scheme.with_settings(scale_dtype="float16")
    except UnsupportedSpec:  # powers of two have a dtype of their own
        return weight.scheme


def mixture(weights: Sequence[Weight]) -> str | None:
    """Which two of `weights` are not on one grid ("b is dense and a int4 g64 sym"), so that they cannot be one matrix.

    None when all are on one grid, or all dense.
    """
    first, *others = weights
    for other in others:
        if grid_of(other) != grid_of(first):
            return f"{other.name} is {grid_of(other) or 'dense'} and {first.name} {grid_of(first) or 'dense'}"
    return None

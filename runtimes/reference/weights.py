"""The weights of a checkpoint in float32: read at use, some kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from quantkit.tensors.views import QuantizedView, Weight

PIECE_ELEMENTS = 1 << 24
"""Weights in float32 at a time, of a matrix that is not kept: 64 MiB."""


class Weights:
    """Float32 weights by name: widened exactly if dense, scale * (code - zero) if quantized.

    A weight that is asked for with `keep` stays in memory, until `budget` bytes are held; what does not fit is read
    at every use. Nothing is evicted: a forward pass visits all weights in a fixed order, where dropping the oldest
    would drop exactly the one that is needed next.
    """

    def __init__(self, views: Mapping[str, Weight], budget: int) -> None:
        self._views = views
        self._kept: dict[str, np.ndarray] = {}
        self._free = budget

    def whole(self, name: str, *, keep: bool) -> np.ndarray:
        """The tensor `name`."""
        if name in self._kept:
            return self._kept[name]
        view = self._views[name]
        dequantized = view.read().dequantized() if isinstance(view, QuantizedView) else view.read()
        values: np.ndarray = dequantized.astype(np.float32, copy=False)
        if keep and values.nbytes <= self._free:
            self._kept[name] = values
            self._free -= values.nbytes
        return values

    def pieces(self, name: str, *, keep: bool) -> Iterator[np.ndarray]:
        """The matrix `name` in runs of whole rows, one of them where it is kept."""
        view = self._views[name]
        if self._keeps(name, keep=keep):
            yield self.whole(name, keep=True)
        elif isinstance(view, QuantizedView):
            yield from view.dequantized_chunks(PIECE_ELEMENTS)
        else:
            for piece in view.chunks(PIECE_ELEMENTS):
                yield piece.astype(np.float32, copy=False)

    def rows(self, name: str, indices: np.ndarray, *, keep: bool) -> np.ndarray:
        """Rows of the matrix `name`, (len(indices), columns); no other is read where it is not kept."""
        if self._keeps(name, keep=keep):
            kept: np.ndarray = self.whole(name, keep=True)[indices]
            return kept
        view = self._views[name]
        different, places = np.unique(indices, return_inverse=True)
        if isinstance(view, QuantizedView):
            tensor = view.read()
            parts = [tensor.part(slice(row, row + 1)).dequantized() for row in different]
        else:
            parts = [view.fetch(int(row), int(row) + 1) for row in different]
        rows: np.ndarray = np.concatenate(parts).astype(np.float32, copy=False)[places]
        return rows

    def _keeps(self, name: str, *, keep: bool) -> bool:
        """Whether the tensor `name` is held, or will be once it is read."""
        size = self._views[name].size * np.dtype(np.float32).itemsize
        return name in self._kept or (keep and size <= self._free)

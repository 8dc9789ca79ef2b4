"""Rows of values to blocks of any type as ggml's `ggml_quantize_chunk` makes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.quantizers import finite, half_floats
from quantkit.exporters.gguf.reference import codebooks, simple, super_blocks
from quantkit.exporters.gguf.reference.super_blocks import Quantizer
from quantkit.exporters.gguf.types.codebooks import MXFP4
from quantkit.exporters.gguf.types.values import LAYOUTS

SEARCHED: Mapping[BlockType, Quantizer] = {**super_blocks.QUANTIZERS, **codebooks.QUANTIZERS}
WEIGHED = frozenset({*simple.WEIGHED, *SEARCHED} - {MXFP4})
"""Types that read importance weights; the others are the same with and without."""
PIECE = 1 << 16
"""Weights that are quantized at a time: the arrays of a search stay in a core's second-level cache."""


def reference_blocks(name: str, block: BlockType, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Quantize finite rows as ggml does.

    Args:
        name: the tensor's name, for errors.
        block: any quantized type that has values in `blocks` or `types`.
        values: (rows, cols) of any float dtype, taken to float32; cols is a multiple of block.elements.
        weights: importance of every column, float32 (cols), or None; read by `WEIGHED` types alone.

    Returns:
        uint8 (rows, block.row_bytes(cols)).

    Raises:
        NonFiniteValues: NaN or infinity among the values.
        ValueOutOfRange: a scale or minimum beyond float16.
    """
    rows, cols = values.shape
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        if block not in SEARCHED:
            return _simple(name, block, values, weights)
        flat, per_row = values.reshape(-1, block.elements), cols // block.elements
        packed = np.empty((len(flat), block.nbytes), np.uint8)
        step = max(1, PIECE // block.elements)
        importance = None if weights is None else np.asarray(weights, np.float32).reshape(per_row, block.elements)
        for start in range(0, len(flat), step):
            piece = finite(name, flat[start : start + step].astype(np.float32))
            own = None if importance is None else importance[np.arange(start, start + len(piece)) % per_row]
            parts = SEARCHED[block](piece, own)
            for scale in (parts.d, parts.dmin):
                if scale is not None and scale.dtype == np.float16:
                    half_floats(name, block, scale)
            packed[start : start + step] = LAYOUTS[block].pack(parts)
    return packed.reshape(rows, -1)


def _simple(name: str, block: BlockType, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Whole rows at a time: some of these types look at the mean square of a row."""
    rows, cols = values.shape
    packed = np.empty((rows, block.row_bytes(cols)), np.uint8)
    step = max(1, PIECE // cols)
    importance = None if weights is None else np.asarray(weights, np.float32)
    for start in range(0, rows, step):
        piece = finite(name, values[start : start + step].astype(np.float32))
        packed[start : start + step] = simple.reference_blocks(name, block, piece, importance)
    return packed

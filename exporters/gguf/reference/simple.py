"""ggml's quantizers of types whose codes are multiples of one float16 scale; see `quantkit.exporters.gguf.blocks`.

Without importance weights Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are those of `quantkit.exporters.gguf.quantizers`. The others
make of (rows, cols) and importance (cols) uint8 codes (n, elements), float32 scales (n), and minimums (n) or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.quantizers import half_floats, quantize
from quantkit.exporters.gguf.reference.arithmetic import along, ordered_sum, sub_blocks
from quantkit.exporters.gguf.reference.searches import OffsetSearch, symmetric_search
from quantkit.exporters.gguf.reference.super_blocks import importance

Simple = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]
WEIGHED = (blocks.Q4_0, blocks.Q4_1, blocks.Q5_0, blocks.Q5_1)
"""Types that read importance weights."""
TRITS: Mapping[BlockType, int] = {blocks.TQ1_0: 1, blocks.TQ2_0: 1, blocks.Q2_0: 0}
"""Types with the scale max |x|, and the code that C makes of a quotient that is infinite or NaN."""


def reference_blocks(name: str, block: BlockType, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """As `quantkit.exporters.gguf.reference.quantizer.reference_blocks`; values are finite float32."""
    if block in TRITS:
        codes, scale, minimum = _trits(block, values)
    elif weights is None or block not in WEIGHED:
        return quantize(name, block, values)
    else:
        codes, scale, minimum = _weighed(block, values, weights)
    rows = len(values)
    halves = half_floats(name, block, scale).reshape(rows, -1)
    least = None if minimum is None else half_floats(name, block, minimum).reshape(rows, -1)
    return blocks.pack(block, codes.reshape(rows, -1), halves, least)


def _trits(block: BlockType, values: np.ndarray) -> Simple:
    x = values.reshape(-1, block.elements)
    sizes = np.abs(x)
    scale = sizes.max(axis=1)
    inverse = np.float32(1) / scale
    inverse[scale == 0] = 0
    quotients = np.multiply(sizes, inverse[:, None], out=sizes)
    codes = np.where(quotients >= np.float32(0.5), np.where(x < 0, np.uint8(0), np.uint8(2)), np.uint8(1))
    codes[np.isinf(inverse)] = TRITS[block]
    return codes, scale, None


def _weighed(block: BlockType, values: np.ndarray, weights: np.ndarray) -> Simple:
    """Searched by importance; the mean square is that of a row."""
    rows, cols = values.shape
    squares = ordered_sum(np.ascontiguousarray((values * values).T)) / np.float32(cols)
    x = sub_blocks(values, block.elements)
    per_row = cols // block.elements
    wanted = np.tile(sub_blocks(weights.reshape(1, -1), block.elements), rows)
    w = importance(x, wanted, np.repeat(squares, per_row))
    codes, scale, minimum = _SEARCHES[block](x, w)
    return along(codes, len(scale)), scale, minimum


def _symmetric(half: int) -> Callable[[np.ndarray, np.ndarray], Simple]:
    return lambda x, w: (*symmetric_search(x, w, half), None)


def _with_minimum(levels: int) -> Callable[[np.ndarray, np.ndarray], Simple]:
    search = OffsetSearch(levels, -0.9, 0.05, 36, weighted=True)

    def run(x: np.ndarray, w: np.ndarray) -> Simple:
        codes, scale, minimum = search.run(x, w)
        return codes, scale, -minimum

    return run


_SEARCHES: Mapping[BlockType, Callable[[np.ndarray, np.ndarray], Simple]] = {
    blocks.Q4_0: _symmetric(8),
    blocks.Q5_0: _symmetric(16),
    blocks.Q4_1: _with_minimum(15),
    blocks.Q5_1: _with_minimum(31),
}

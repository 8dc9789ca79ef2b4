"""Dense weights that are ternary as they stand, as blocks: 0 and one magnitude in each block become codes and scale.

For these types ggml's reference quantizer takes max|x| for the scale, which ruins every other weight. So others are
refused by name; of those that are written, the bytes are the reference's. The sign of a zero does not count.
Fake-quantized checkpoints such as BitCPM's are of this kind.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import UnsupportedSpec
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.tensors.cast import check_range
from quantkit.tensors.packing import magnitude_patterns
from quantkit.tensors.views import TensorView

AS_THEY_STAND = (blocks.TQ2_0, blocks.TQ1_0, blocks.Q2_0)
"""Types that dense weights become without being changed, or not at all."""


def ternary_blocks(view: TensorView, block: BlockType, values: np.ndarray) -> np.ndarray:
    """Rows of a dense matrix as blocks.

    Args:
        view: the whole matrix, which is read through once more where some of its values are refused.
        block: one of `AS_THEY_STAND`.
        values: some of its rows, (rows, cols), of any float dtype; cols is a multiple of block.elements.

    Returns:
        uint8 (rows, block.row_bytes(cols)).

    Raises:
        UnsupportedSpec: values that are neither 0 nor plus or minus one float16 per block; says how many.
        NonFiniteValues: NaN or infinity.
    """
    rows, cols = values.shape
    nonzero, strays, scale = _examined(view.name, block, values)
    if strays.any():
        raise _refusal(view, block)
    # -1, 0, 1 as 0, 1, 2. Of the patterns with a sign the lowest is -0, all others are below zero.
    patterns = values.view(f"u{values.itemsize}")
    negative = patterns > patterns.dtype.type(1 << (8 * values.itemsize - 1))
    codes = nonzero.view(np.uint8).reshape(rows, cols) + np.uint8(1)
    codes -= negative.view(np.uint8) * np.uint8(2)
    return blocks.pack(block, codes, scale.reshape(rows, -1))


def _examined(name: str, block: BlockType, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which values are not zero, and which not ternary, bool (n, elements); the scale of each block, float16 (n,)."""
    magnitudes = magnitude_patterns(values).reshape(-1, block.elements)
    largest = magnitudes.max(axis=1, keepdims=True)
    wide = largest.view(values.dtype).astype(np.float32)
    if not np.isfinite(wide).all():
        check_range(name, values, values.dtype)
    with np.errstate(over="ignore"):
        scale = wide.astype(np.float16)
    nonzero = magnitudes != 0
    strays = magnitudes != largest
    strays &= nonzero
    rounded = scale.astype(np.float32) != wide
    if rounded.any():
        strays |= nonzero & rounded
    return nonzero, strays, scale[:, 0]


def _refusal(view: TensorView, block: BlockType) -> UnsupportedSpec:
    strays = sum(int(_examined(view.name, block, rows)[1].sum()) for rows in view.chunks())
    return UnsupportedSpec(
        f"{view.name}: gguf holds dense weights as {block.name.lower()} only where they are ternary as they stand; "
        f"{strays:,} of {view.size:,} values ({strays / view.size:.2%}) are not 0 or plus or minus one float16 in each "
        f"{block.elements}",
        hint="make them ternary first, with `quantkit quantize --method ternary`, or choose q4_0",
    )

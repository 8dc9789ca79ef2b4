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
from quantkit.tensors.ternary import off_grid_share
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
        UnsupportedSpec: values that are neither 0 nor plus or minus one magnitude per block, with their share of the
            matrix; or a magnitude that float16 does not hold.
        NonFiniteValues: NaN or infinity.
    """
    rows, cols = values.shape
    magnitudes = magnitude_patterns(values).reshape(-1, block.elements)
    largest = magnitudes.max(axis=1, keepdims=True)
    nonzero, strays = magnitudes != 0, magnitudes != largest
    strays &= nonzero
    if strays.any():
        check_range(view.name, values, values.dtype)
        raise _refusal(view, block)
    scale = _float16_scales(view, block, largest.view(values.dtype))
    # -1, 0, 1 as 0, 1, 2. Of the patterns with a sign the lowest is -0, all others are below zero.
    patterns = values.view(magnitudes.dtype)
    negative = patterns > patterns.dtype.type(1 << (8 * values.itemsize - 1))
    codes = nonzero.view(np.uint8).reshape(rows, cols) + np.uint8(1)
    codes -= negative.view(np.uint8) * np.uint8(2)
    return blocks.pack(block, codes, scale.reshape(rows, -1))


def _float16_scales(view: TensorView, block: BlockType, largest: np.ndarray) -> np.ndarray:
    """The largest magnitude of every block in float16."""
    check_range(view.name, largest, largest.dtype)
    scale = largest.astype(np.float32)
    with np.errstate(over="ignore"):
        halves: np.ndarray = scale.astype(np.float16)
    if not np.array_equal(halves, scale):
        raise UnsupportedSpec(
            f"{view.name}: {block.name.lower()} holds float16 scales, and the magnitude "
            f"{scale[halves != scale][0]:g} is none",
            hint="write bf16 or f32, which hold its values",
        )
    return halves


def _refusal(view: TensorView, block: BlockType) -> UnsupportedSpec:
    share = off_grid_share(view, block.elements)
    return UnsupportedSpec(
        f"{view.name}: gguf holds dense weights as {block.name.lower()} only where they are ternary as they stand; "
        f"{100 * share:.3g} % of its values are not 0 or plus or minus one magnitude in each {block.elements}",
        hint="make them ternary first, with `quantkit quantize --method ternary`, or choose q4_0",
    )

"""Rows of values to blocks of any type that has a grid; the best that this package finds."""

from __future__ import annotations

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.quantizers import finite, half_floats
from quantkit.exporters.gguf.reference.arithmetic import sub_blocks
from quantkit.exporters.gguf.searched.about_zero import scales_about_zero
from quantkit.exporters.gguf.searched.feedback import levels_of
from quantkit.exporters.gguf.searched.grids import GRIDS, Grid
from quantkit.exporters.gguf.searched.guides import Guide
from quantkit.exporters.gguf.searched.scales import Scales
from quantkit.exporters.gguf.searched.with_minimum import scales_with_minimum
from quantkit.exporters.gguf.types.codebooks import MXFP4
from quantkit.exporters.gguf.types.parts import Parts
from quantkit.exporters.gguf.types.schemes import HALF_OF_ONE, RAISED
from quantkit.exporters.gguf.types.super_blocks import Q6_K
from quantkit.exporters.gguf.types.values import LAYOUTS

PIECE = 1 << 16
"""Weights whose scales are searched at a time: the arrays of a search stay in a core's second-level cache."""


def searched_blocks(name: str, block: BlockType, values: np.ndarray, guide: Guide) -> np.ndarray:
    """Quantize finite rows.

    Args:
        name: the tensor's name, for errors.
        block: a type of `GRIDS`.
        values: (rows, cols) of any float dtype, taken to float32; cols is a multiple of block.elements.
        guide: what errors of its columns cost.

    Returns:
        uint8 (rows, block.row_bytes(cols)).

    Raises:
        NonFiniteValues: NaN or infinity among the values.
        ValueOutOfRange: a scale or minimum beyond float16.
    """
    grid, wide = GRIDS[block], finite(name, values.astype(np.float32))
    rows, cols = wide.shape
    step = max(1, PIECE // cols)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        found = [_scales(block, grid, wide[start : start + step], guide.energy) for start in range(0, rows, step)]
        scales = _joined(found)
        for scale in (scales.unit, scales.low_unit, *((scales.scale, scales.offset) if scales.unit is None else ())):
            if scale is not None and block is not MXFP4:
                half_floats(name, block, scale)
        offset = None if scales.offset is None else scales.offset.reshape(rows, -1)
        levels = levels_of(grid, wide, scales.scale.reshape(rows, -1), offset, guide.factors)
    return _packed(block, grid.codes(levels), scales).reshape(rows, -1)


def _scales(block: BlockType, grid: Grid, values: np.ndarray, energy: np.ndarray) -> Scales:
    """Errors count by the energy of their column, and by sqrt(mean square of the block + the weight's own square)."""
    x = sub_blocks(values, grid.run)
    squares = x * x
    per_block = block.elements // grid.run
    mean = np.repeat(np.add.reduce(squares, axis=0).reshape(-1, per_block).sum(axis=1), per_block)
    squares += mean / np.float32(block.elements)
    w = np.sqrt(squares, out=squares)
    w *= np.tile(sub_blocks(energy[None], grid.run), len(values))
    return (scales_with_minimum if grid.minima else scales_about_zero)(grid, x, w, per_block)


def _joined(parts: list[Scales]) -> Scales:
    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    scale = joined("scale")
    assert scale is not None
    return Scales(scale, *map(joined, ("offset", "unit", "count", "low_unit", "low_count")))


def _packed(block: BlockType, codes: np.ndarray, scales: Scales) -> np.ndarray:
    """Blocks uint8 (n, nbytes) of codes (rows, cols)."""
    codes = codes.reshape(-1, block.elements)
    count = len(codes)
    if block not in LAYOUTS:
        minimum = None if scales.offset is None else scales.offset.astype(np.float16)[:, None]
        return blocks.pack(block, codes, scales.scale.astype(np.float16)[:, None], minimum)
    if scales.unit is None:
        d = scales.scale.astype(np.float16)
        if block is MXFP4:
            exponent = np.where(scales.scale > 0, np.frexp(scales.scale)[1] + HALF_OF_ONE, 0)
            d = exponent.astype(np.uint8)
        return LAYOUTS[block].pack(Parts(codes=codes, d=d))

    def each(values: np.ndarray, raised: int = 0) -> np.ndarray:
        integers: np.ndarray = values.reshape(count, -1) + np.float32(raised)
        return integers.astype(np.int8 if block is Q6_K else np.uint8)

    def shared(values: np.ndarray) -> np.ndarray:
        halves: np.ndarray = values.reshape(count, -1)[:, 0].astype(np.float16)
        return halves

    assert scales.count is not None
    parts = {"d": shared(scales.unit), "scales": each(scales.count, RAISED.get(block, 0))}
    if scales.low_unit is not None and scales.low_count is not None:
        parts |= {"dmin": shared(scales.low_unit), "mins": each(scales.low_count)}
    return LAYOUTS[block].pack(Parts(codes=codes, **parts))

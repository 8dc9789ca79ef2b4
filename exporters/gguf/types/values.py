"""Every type of this package by its block, and the weights that its bytes stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.errors import NonFiniteValues
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types import codebooks, super_blocks
from quantkit.exporters.gguf.types.parts import Layout, Parts

LAYOUTS: Mapping[BlockType, Layout] = {**super_blocks.LAYOUTS, **codebooks.LAYOUTS}


NO_SCALE = 255
"""The exponent that is NaN to E8M0, and that ggml refuses."""
LARGE = 250
"""The least exponent of which the largest levels may exceed float32."""


def parts_of(name: str, block: BlockType, raw: np.ndarray) -> Parts:
    """Blocks of a type in `LAYOUTS`, uint8 (rows, bytes), taken apart; `name` is the tensor's, for errors.

    Raises:
        NonFiniteValues: a scale or minimum that is infinite or NaN, or weights that are.
    """
    parts = LAYOUTS[block].unpack(np.ascontiguousarray(raw).reshape(-1, block.nbytes))
    for what, values in (("scale", parts.d), ("minimum", parts.dmin)):
        bad = np.flatnonzero(_no_number(values)) if values is not None else np.empty(0, int)
        if bad.size:
            raise NonFiniteValues(f"tensor {name!r}: block {bad[0]:,} has a {what} that is NaN or infinite")
    large = np.flatnonzero(parts.d >= LARGE) if parts.d.dtype == np.uint8 else np.empty(0, int)
    if large.size:
        some = Parts(codes=parts.codes[large], d=parts.d[large])
        with np.errstate(over="ignore"):
            finite = np.isfinite(LAYOUTS[block].values(some)).all()
        if not finite:
            raise NonFiniteValues(f"tensor {name!r}: weights of its {block.name} blocks exceed float32's 3.4e38")
    return parts


def dequantized(name: str, block: BlockType, raw: np.ndarray) -> np.ndarray:
    """The float32 weights (rows, cols) that blocks stand for, as ggml computes them; arguments as for `parts_of`."""
    return LAYOUTS[block].values(parts_of(name, block, raw)).reshape(len(raw), -1)


def _no_number(values: np.ndarray) -> np.ndarray:
    """Which float16 scales, or exponents, stand for none."""
    none: np.ndarray = values == NO_SCALE if values.dtype == np.uint8 else ~np.isfinite(values)
    return none

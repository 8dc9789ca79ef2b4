"""Every type of this package by its block, and the weights that its bytes stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.errors import NonFiniteValues
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types import codebooks, super_blocks
from quantkit.exporters.gguf.types.parts import Layout

LAYOUTS: Mapping[BlockType, Layout] = {**super_blocks.LAYOUTS, **codebooks.LAYOUTS}


NO_SCALE = 255
"""The exponent that is NaN to E8M0, and that ggml refuses."""


def dequantized(name: str, block: BlockType, raw: np.ndarray, *, first: int = 0) -> np.ndarray:
    """The float32 weights (rows, cols) that blocks of a type in `LAYOUTS` stand for, as ggml computes them.

    Args:
        name: the tensor's name, for errors.
        block: the type.
        raw: uint8 (rows, bytes), whole blocks.
        first: how many blocks of the tensor come before, for errors.

    Raises:
        NonFiniteValues: a scale or minimum that is infinite or NaN.
    """
    layout = LAYOUTS[block]
    parts = layout.unpack(np.ascontiguousarray(raw).reshape(-1, block.nbytes))
    for what, values in (("scale", parts.d), ("minimum", parts.dmin)):
        bad = np.flatnonzero(_no_number(values)) if values is not None else np.empty(0, int)
        if bad.size:
            raise NonFiniteValues(f"tensor {name!r}: block {first + bad[0]:,} has a {what} that is NaN or infinite")
    with np.errstate(over="ignore"):
        values = layout.values(parts).reshape(len(raw), -1)
    if parts.d.dtype == np.uint8 and not np.isfinite(values).all():
        raise NonFiniteValues(f"tensor {name!r}: weights of its {block.name} blocks exceed float32's 3.4e38")
    return values


def _no_number(values: np.ndarray) -> np.ndarray:
    """Which float16 scales, or exponents, stand for none."""
    none: np.ndarray = values == NO_SCALE if values.dtype == np.uint8 else ~np.isfinite(values)
    return none

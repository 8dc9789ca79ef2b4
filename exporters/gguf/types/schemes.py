"""The scheme of each block type, and quantized tensors of these schemes as blocks and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.codebooks import IQ4_NL, IQ4_XS, MXFP4, half_powers
from quantkit.exporters.gguf.types.parts import Parts
from quantkit.exporters.gguf.types.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from quantkit.exporters.gguf.types.values import LAYOUTS, parts_of
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.codebook import Codebook
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.schemes.super_blocks import SuperBlocks

SCHEMES: Mapping[BlockType, Scheme] = {
    blocks.Q4_0: AffineGroups(bits=4, group_size=32),
    blocks.Q5_0: AffineGroups(bits=5, group_size=32),
    blocks.Q8_0: AffineGroups(bits=8, group_size=32),
    blocks.Q4_1: OffsetGroups(bits=4, group_size=32),
    blocks.Q5_1: OffsetGroups(bits=5, group_size=32),
    Q2_K: SuperBlocks(bits=2, group_size=16, scale_bits=4, minima=True),
    Q3_K: SuperBlocks(bits=3, group_size=16, scale_bits=6, minima=False),
    Q4_K: SuperBlocks(bits=4, group_size=32, scale_bits=6, minima=True),
    Q5_K: SuperBlocks(bits=5, group_size=32, scale_bits=6, minima=True),
    Q6_K: SuperBlocks(bits=6, group_size=16, scale_bits=8, minima=False),
    IQ4_NL: Codebook(table="iq4-nl"),
    IQ4_XS: SuperBlocks(bits=4, group_size=32, scale_bits=6, minima=False, table="iq4-nl"),
    MXFP4: Codebook(table="fp4", powers=True, scale_dtype="float32"),
}
"""What the codes of a block can be, where a solver chooses them."""
RAISED = {Q3_K: 32, IQ4_XS: 32}
"""What is added to sub-scales, which have no sign in these blocks."""
HALF_OF_ONE = 127
"""MXFP4's exponent of 2 ** -1: scales are half of what E8M0 stands for."""


def packed(block: BlockType, tensor: QuantizedTensor) -> np.ndarray:
    """A tensor of the scheme of a type in `LAYOUTS` as its blocks: uint8 (rows, bytes)."""
    rows, cols = tensor.shape
    count = rows * cols // block.elements
    arrays = tensor.arrays
    if isinstance(tensor.scheme, Codebook):
        scale = arrays["scale"].reshape(count)
        d = (np.frexp(scale)[1] + HALF_OF_ONE).astype(np.uint8) if tensor.scheme.powers else scale
        parts = Parts(codes=tensor.codes.reshape(count, -1), d=d)
    else:
        shared = {name: arrays[name].reshape(count) for name in ("d", "dmin") if name in arrays}
        scales = arrays["sub_scale"].reshape(count, -1)
        if block in RAISED:
            scales = (scales.astype(np.int16) + RAISED[block]).astype(np.uint8)
        mins = arrays["sub_min"].reshape(count, -1) if "sub_min" in arrays else None
        parts = Parts(codes=tensor.codes.reshape(count, -1), scales=scales, mins=mins, **shared)
    return LAYOUTS[block].pack(parts).reshape(rows, -1)


def unpacked(name: str, block: BlockType, raw: np.ndarray) -> QuantizedTensor:
    """Inverse of `packed`; raises as `parts_of`, with the tensor's `name`."""
    rows = len(raw)
    parts = parts_of(name, block, raw)
    scheme, codes = SCHEMES[block], parts.codes.reshape(rows, -1)
    if isinstance(scheme, Codebook):
        scale = half_powers(parts.d) if scheme.powers else parts.d
        return QuantizedTensor(scheme, codes, {"scale": scale.reshape(rows, -1)})
    assert parts.scales is not None
    scales = parts.scales
    if block in RAISED:
        scales = (scales.astype(np.int16) - RAISED[block]).astype(np.int8)
    arrays = {"d": parts.d, "sub_scale": scales}
    if parts.mins is not None and parts.dmin is not None:
        arrays |= {"dmin": parts.dmin, "sub_min": parts.mins}
    return QuantizedTensor(scheme, codes, {name: values.reshape(rows, -1) for name, values in arrays.items()})

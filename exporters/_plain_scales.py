"""Codes on scales of scales, as codes with a float32 scale, and offset, for every group: the same numbers.

    d * sub_scale     float16 times 8 bits: 19 significant bits, which float32 holds
    dmin * sub_min    the same

A container that has float32 scales for groups of 16 or 32 then holds a K-quant exactly. Levels of a table stay as they
are: no container but their own has them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.schemes.super_blocks import SuperBlocks
from quantkit.tensors.views import QuantizedView, Weight


def with_plain_scales(model: Checkpoint) -> Checkpoint:
    """`model`, whose super-blocks of evenly spaced levels are read with a scale for every group."""
    weights = {name: _plain(weight) for name, weight in model.weights.items()}
    if all(weights[name] is weight for name, weight in model.weights.items()):
        return model
    return replace(model, weights=weights)


def _plain(weight: Weight) -> Weight:
    if not isinstance(weight, QuantizedView) or not isinstance(weight.scheme, SuperBlocks) or weight.scheme.table:
        return weight
    view, source = weight, weight.scheme
    scheme: AffineGroups | OffsetGroups
    if source.minima:
        scheme = OffsetGroups(bits=source.bits, group_size=source.group_size, scale_dtype="float32")
    else:
        scheme = AffineGroups(bits=source.bits, group_size=source.group_size, scale_dtype="float32")

    def read() -> QuantizedTensor:
        tensor = view.read()
        scale, offset = source.effective(tensor.arrays)
        if source.minima:
            return QuantizedTensor(scheme, tensor.codes, {"scale": scale, "offset": offset})
        zero = np.full(scale.shape, source.middle, np.uint8)
        return QuantizedTensor(scheme, tensor.codes, {"scale": scale, "zero": zero})

    return QuantizedView(view.name, view.shape, scheme, read)

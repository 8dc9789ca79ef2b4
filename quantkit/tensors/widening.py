"""The same weights in codes of more bits, for containers and engines that have no narrower ones.

    level = code - midpoint,  wider code = level + midpoint of the wider codes

A symmetric grid of fewer bits is a part of every wider one with the same scales, ternary weights of that of 2 bits, so
nothing is rounded. `QuantizedTensor.numbers_digest` is that of the narrow tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, Weight


def widened(scheme: Scheme, bits: int) -> AffineGroups:
    """`scheme` in codes of `bits` bits that use all levels.

    Raises:
        UnsupportedSpec: it is not symmetric, or has codes of more bits.
    """
    if not isinstance(scheme, AffineGroups) or not scheme.symmetric or scheme.bits > bits:
        raise UnsupportedSpec(f"{scheme} cannot be stored in symmetric codes of {bits} bits")
    return replace(scheme, bits=bits, ternary=False)


def widened_tensor(tensor: QuantizedTensor, bits: int) -> QuantizedTensor:
    """`tensor` in codes of `bits` bits, scales as they are; raises as `widened`."""
    scheme = widened(tensor.scheme, bits)
    codes = tensor.codes + (np.uint8(scheme.midpoint) - tensor.zero.flat[0])
    return QuantizedTensor(scheme, codes, {"scale": tensor.scale, "zero": np.full_like(tensor.zero, scheme.midpoint)})


def widened_view(view: QuantizedView, bits: int) -> QuantizedView:
    """`view`, read as `widened_tensor`; raises as `widened`, with the weight's name."""
    try:
        scheme = widened(view.scheme, bits)
    except UnsupportedSpec as error:
        raise UnsupportedSpec(f"{view.name}: {error}") from None
    return replace(view, scheme=scheme, read=lambda: widened_tensor(view.read(), bits))


def wider_view(view: QuantizedView, bits: int) -> QuantizedView:
    """`view` in codes of more bits: `widened_view` where it is symmetric, else the codes stay what they are."""
    if isinstance(view.scheme, AffineGroups) and view.scheme.symmetric:
        return widened_view(view, bits)
    scheme = view.scheme.with_settings(bits=bits)

    def read() -> QuantizedTensor:
        tensor = view.read()
        return QuantizedTensor(scheme, tensor.codes, tensor.arrays)

    return replace(view, scheme=scheme, read=read)


def widened_weights(
    weights: Mapping[str, Weight], bits: int, *, keeps_ternary: bool = False, without: Collection[str] = ()
) -> dict[str, Weight]:
    """`weights` by name, whose symmetric codes of fewer than `bits` bits have `bits`; all others are as they are.

    Args:
        weights: any, dense ones among them.
        bits: 2 to 8.
        keeps_ternary: whether ternary codes of as many bits stay what they are; else they become plain ones.
        without: names of weights that are left alone.
    """

    def stored(weight: Weight) -> Weight:
        if not isinstance(weight, QuantizedView) or weight.name in without:
            return weight
        scheme = weight.scheme
        if not isinstance(scheme, AffineGroups) or not scheme.symmetric:
            return weight
        plain = scheme.ternary and scheme.bits == bits and not keeps_ternary
        return widened_view(weight, bits) if scheme.bits < bits or plain else weight

    return {name: stored(weight) for name, weight in weights.items()}

"""Codes and scales of a quantized tensor as blocks, and back: which type holds which scheme, value for value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import InconsistentCheckpoint, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, Weight


def holds(block: BlockType, scheme: Scheme, cols: int) -> bool:
    """Whether blocks of this type hold every tensor of `scheme` with `cols` columns, value for value."""
    return obstacle(block, scheme, cols) is None


def obstacle(block: BlockType, scheme: Scheme, cols: int) -> str | None:
    """Why blocks of this type do not hold every tensor of `scheme` with `cols` columns, or None where they do.

    A block has one scale, and no group may end inside it. Types with a minimum hold offsets, and of integer zero points
    the product with the scale, rounded to float16; the others hold code - zero and are exact.
    """
    width = scheme.group_width(cols)
    if width % block.elements:
        return f"groups of {width} with a scale each do not share a {block.name} block of {block.elements}"
    if block.offset is None:
        fits = isinstance(scheme, (AffineGroups, OffsetGroups)) and scheme.bits <= block.bits
    else:
        fits = isinstance(scheme, AffineGroups) and _direction(block, scheme) != 0
    return None if fits else f"{block.name} does not hold the codes of {scheme}"


def wider_notes(carried: Iterable[tuple[BlockType, Weight]]) -> Iterator[str]:
    """What is said of codes that lie in blocks of more bits than they have, a line for each kind."""
    kinds = Counter(
        (str(weight.scheme), block)
        for block, weight in carried
        if isinstance(weight, QuantizedView) and not block.ternary and weight.scheme.bits < block.bits
    )
    for (scheme, block), count in kinds.items():
        yield (
            f"{count} weights of {scheme} are stored as {block.name.lower()}, in {block.bits} bits: no number changes, "
            f"and the file is as large as one of {block.bits} bits"
        )


def own_scheme(block: BlockType) -> AffineGroups | OffsetGroups:
    """The scheme of blocks of which nothing is recorded."""
    return carried_scheme(block, AffineGroups(bits=block.bits, group_size=block.elements, ternary=block.ternary))


def carried_scheme(block: BlockType, scheme: Scheme) -> AffineGroups | OffsetGroups:
    """What comes back of codes of `scheme` from such blocks, which hold it.

    Types with a minimum give back the offsets that engines compute with. Types without store code - zero: of an
    asymmetric tensor the same weights come back as a symmetric one.
    """
    if block.has_minimum:
        return OffsetGroups(bits=scheme.bits, group_size=scheme.group_size)
    if not isinstance(scheme, AffineGroups):
        raise UnsupportedSpec(f"{block.name} has no offsets, which {scheme} needs")
    return scheme if scheme.symmetric else replace(scheme, bits=block.bits, symmetric=True)


def _direction(block: BlockType, scheme: AffineGroups) -> int:
    """1 where code - zero is what the block's codes count, -1 where zero - code is, with scales negated; 0 for neither.

    Four symmetric levels are -2 to 1, Q2_0's are -1 to 2: they lie in it the other way round.
    """
    if scheme.symmetric:
        lowest, highest = -scheme.midpoint, scheme.levels - 1 - scheme.midpoint
    else:
        lowest, highest = 1 - scheme.levels, scheme.levels - 1
    offset = block.offset or 0
    for direction, low, high in ((1, lowest, highest), (-1, -highest, -lowest)):
        if -offset <= low and high < block.levels - offset:
            return direction
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """Codes and parameters as blocks. packed: uint8 (rows, bytes). moved: by how many steps at most a weight moved."""

    packed: np.ndarray
    moved: float = 0.0


def carried(name: str, block: BlockType, tensor: QuantizedTensor) -> Carried:
    """Codes and scales as they are; a minimum rounded to float16.

    Raises:
        UnsupportedSpec: a scale that is not exactly a float16.
        ValueOutOfRange: a minimum beyond float16.
    """
    scale, offset = tensor.scheme.effective(tensor.arrays)
    with np.errstate(over="ignore", under="ignore"):
        halves = scale.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scale):
        row, group = np.argwhere(halves.astype(np.float32) != scale)[0]
        raise UnsupportedSpec(
            f"tensor {name!r}: {block.name} holds float16 scales, and {scale[row, group]:g} of row {row} is none "
            f"(it is {tensor.scheme.scale_dtype})",
            hint="quantize with float16 scales, or write bf16 or f32",
        )
    repeats = tensor.scheme.group_width(tensor.shape[1]) // block.elements
    if block.offset is None:
        minimum, moved = _minimum(name, scale, offset)
        return Carried(blocks.pack(block, tensor.codes, _repeated(halves, repeats), _repeated(minimum, repeats)), moved)
    assert isinstance(tensor.scheme, AffineGroups)  # all that such a type holds
    turned = _direction(block, tensor.scheme) < 0
    zero = np.repeat(tensor.zero, repeats * block.elements, axis=1)
    codes = zero - tensor.codes if turned else tensor.codes - zero
    codes += np.uint8(block.offset)  # below zero it wraps in between; `holds` bounds the sum
    return Carried(blocks.pack(block, codes, _repeated(-halves if turned else halves, repeats)))


def _minimum(name: str, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, float]:
    """Offsets as float16, and by how many steps that moves the weights of a group at most."""
    with np.errstate(over="ignore", under="ignore"):
        minimum = offset.astype(np.float16)
    if not np.isfinite(minimum).all():
        raise ValueOutOfRange(f"tensor {name!r}: scale times zero point exceeds float16's 65504")
    distance = np.abs(minimum.astype(np.float64) - offset)
    steps = np.divide(distance, np.abs(scale), out=np.zeros_like(distance), where=scale != 0)
    return minimum, float(steps.max(initial=0.0))


def _repeated(values: np.ndarray, repeats: int) -> np.ndarray:
    return np.repeat(values, repeats, axis=1)


def recovered(name: str, block: BlockType, raw: np.ndarray, scheme: AffineGroups | OffsetGroups) -> QuantizedTensor:
    """Inverse of `carried`: uint8 (rows, bytes) to the tensor of `scheme`, see `carried_scheme`, that they hold.

    Raises:
        NonFiniteValues: an infinite scale. InconsistentCheckpoint: the blocks cannot be of that scheme.
    """
    codes, scale, minimum = blocks.unpack(block, raw)
    _check_scales(name, scale, minimum)
    groups, dtype = scheme.groups(codes.shape[1], name=name), SCALE_DTYPES[scheme.scale_dtype]
    arrays = {"scale": _merged(name, scale, groups, scheme).astype(dtype)}
    if minimum is not None:
        arrays["offset"] = _merged(name, minimum, groups, scheme).astype(dtype)
    elif isinstance(scheme, AffineGroups):
        arrays["zero"] = np.full(arrays["scale"].shape, scheme.midpoint, np.uint8)
        offset = np.uint8(block.offset or 0)
        if _direction(block, scheme) < 0:
            np.negative(arrays["scale"], out=arrays["scale"])
            np.subtract(offset + np.uint8(scheme.midpoint), codes, out=codes)
        else:
            codes -= offset - np.uint8(scheme.midpoint)
        # A code below the lowest has wrapped beyond the highest.
    if codes.max() > scheme.span:
        raise _not_of(name, scheme, "codes")
    return QuantizedTensor(scheme, codes, arrays)


def _merged(name: str, values: np.ndarray, groups: int, scheme: Scheme) -> np.ndarray:
    """One value per group of blocks that must all have the same."""
    grouped = values.reshape(len(values), groups, -1)
    if (grouped.view(np.uint16) != grouped.view(np.uint16)[:, :, :1]).any():
        raise _not_of(name, scheme, "scales")
    return grouped[:, :, 0]


def _not_of(name: str, scheme: Scheme, what: str) -> InconsistentCheckpoint:
    return InconsistentCheckpoint(f"tensor {name!r}: the {what} of its blocks are not those of {scheme}")


def _check_scales(name: str, scale: np.ndarray, minimum: np.ndarray | None) -> None:
    """Refuse blocks whose scale or minimum is no number; raises `NonFiniteValues`."""
    for what, values in (("scale", scale), ("minimum", minimum)):
        if values is not None and not np.isfinite(values).all():
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteValues(f"tensor {name!r}: block {index:,} has a {what} that is NaN or infinite")

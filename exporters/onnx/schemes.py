"""Which quantized weights the graph holds: in codes of 2, 4 or 8 bits, in blocks of a power of two from 16 on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from quantkit.errors import UnsupportedSpec
from quantkit.exporters.onnx.settings import CONTAINER
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.scheme import PER_ROW, Scheme
from quantkit.tensors.schemes.affine_groups import affine
from quantkit.tensors.views import QuantizedView, Weight
from quantkit.tensors.widening import widened_view

WIDTHS = (2, 4, 8)
CHOICES = WIDTHS[1:]
"""What a user may ask for: codes of 2 bits are as narrow as there are."""
SMALLEST, LARGEST, USUAL = 16, 256, 128
"""Blocks that onnxruntime takes, and the largest that a wider group is divided into."""
ROWS_OF_2_BITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """model: as it is stored. changed: those of its weights that have other codes now. notes: what is said of them."""

    model: Checkpoint
    changed: Mapping[str, QuantizedView]
    notes: tuple[str, ...]


def held(model: Checkpoint, bits: int | None, *, standard: bool) -> Held:
    """`model` with every symmetric code as wide as the graph has them, and at least `bits` wide.

    standard: whether the graph is of standard operators. onnxruntime 1.32 fuses those of 2 bits into wrong numbers
    where the rows are no multiple of four.

    Raises:
        UnsupportedSpec: codes with zero points that are no such width, a scheme without integer zero points, or groups
            that are no whole blocks.
    """
    weights: dict[str, Weight] = dict(model.weights)
    changed: dict[str, QuantizedView] = {}
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedView):
            narrow = standard and weight.shape[0] % ROWS_OF_2_BITS
            found = _as_wide(weight, max(bits or 0, 4 if narrow else 0))
            block_of(name, found.scheme, weight.shape[1])
            weights[name] = found
            if found is not weight:
                changed[name] = found
    return Held(replace(model, weights=weights), changed, tuple(_notes(model, changed)))


def _as_wide(weight: QuantizedView, bits: int) -> QuantizedView:
    scheme = affine(weight.name, weight.scheme, container=CONTAINER)
    width = next((width for width in WIDTHS if width >= max(scheme.bits, bits)), scheme.bits)
    if width == scheme.bits and not scheme.ternary:
        return weight
    if not scheme.symmetric:
        raise UnsupportedSpec(
            f"{weight.name}: {CONTAINER} has codes of 2, 4 and 8 bits, and stores others only if they are symmetric, "
            f"not {scheme} of {weight.shape[0]} rows",
            hint="compressed-tensors holds it",
        )
    return widened_view(weight, width)


def _notes(model: Checkpoint, changed: Mapping[str, QuantizedView]) -> Iterator[str]:
    given = {name: model.weights[name] for name in changed}
    kinds = dict.fromkeys(
        (str(view.scheme), changed[name].scheme.bits) for name, view in given.items() if isinstance(view, QuantizedView)
    )
    for scheme, width in kinds:
        yield f"{scheme}: its codes are stored as {width} bits, the numbers are the same"


def block_of(name: str, scheme: Scheme, cols: int) -> int:
    """The columns that share a scale in the graph, a power of two: those of a group, or a part of them.

    Raises:
        UnsupportedSpec: `SMALLEST` columns are no part of a group.
    """
    spec = affine(name, scheme, container=CONTAINER)
    spec.groups(cols, name=name)
    group = cols if spec.group_size == PER_ROW else spec.group_size
    if group & (group - 1) == 0 and SMALLEST <= group <= LARGEST:
        return group
    block = min(group & -group, USUAL)
    if block < SMALLEST:
        raise UnsupportedSpec(
            f"{name}: {CONTAINER} has blocks of a power of two from {SMALLEST} columns on, and {spec} has {group} in a "
            "group",
            hint="quantize in groups of 32, 64 or 128, or choose compressed-tensors",
        )
    return block

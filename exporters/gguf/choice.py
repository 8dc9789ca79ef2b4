"""Which block type every tensor of a GGUF file becomes.

A type that was asked for is taken where it holds the codes. Without one, a quantized weight takes the smallest type
that holds its codes, and dense weights become f16, or q8_0 beside quantized ones. One type is smaller and taken only
where it is asked for: tq1_0 has 54 bytes where tq2_0 has 66, and engines are slower at getting the codes out of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadOption, UnsupportedSpec
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.carrying import holds, obstacle
from quantkit.exporters.gguf.mixture.file_types import MIXED, file_type_number
from quantkit.exporters.gguf.mixture.request import Request, traits_of
from quantkit.exporters.gguf.mixture.rules import tensor_types
from quantkit.exporters.gguf.tensors import PLAIN, Place, places
from quantkit.exporters.gguf.ternary import AS_THEY_STAND
from quantkit.exporters.gguf.types.schemes import SCHEMES
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.codebook import Codebook
from quantkit.tensors.schemes.super_blocks import SuperBlocks
from quantkit.tensors.views import QuantizedView

TYPES: Mapping[str, BlockType] = {
    block.name.lower(): block
    for block in (
        *(blocks.F32, blocks.F16, blocks.BF16),
        *(blocks.Q8_0, blocks.Q4_0, blocks.Q4_1, blocks.Q5_0, blocks.Q5_1),
        *AS_THEY_STAND,
    )
}
SYMMETRIC_CARRIERS = (blocks.TQ2_0, blocks.Q2_0, blocks.Q4_0, blocks.Q5_0, blocks.Q8_0)
OFFSET_CARRIERS = (blocks.Q4_1, blocks.Q5_1, blocks.Q8_0)
"""Types that carry codes when none is asked for, smallest first. Only types with a minimum hold offsets."""

DENSE_DEFAULT = blocks.F16
OUTER_ROLES = (Role.EMBED, Role.LM_HEAD)


def wanted_type(options: ExportOptions) -> BlockType | None:
    """The type that was asked for, if any; raises `BadOption` for an unknown one."""
    if options.type is None:
        return None
    if options.type not in TYPES:
        raise BadOption(f"gguf has no type {options.type!r}", hint=f"choose one of: {', '.join((*TYPES, *MIXED))}")
    return TYPES[options.type]


def requested_types(model: Checkpoint, request: Request) -> dict[Place, BlockType]:
    """The type of every tensor of a file of llama.cpp's mixtures, in file order; raises what `Request.types` raises."""
    every = places(model.spec)
    matrices = {place.name: place.slot.shape for place in every if len(place.slot.shape) > 1}
    chosen = request.types(model.spec, matrices)
    return {place: chosen.get(place.name, blocks.F32) for place in every}


def chosen_types(model: Checkpoint, wanted: BlockType | None) -> dict[Place, BlockType]:
    """The type of every tensor, in file order; raises `UnsupportedSpec` for a weight that no such type holds."""
    carrying = model.holds_codes and wanted not in PLAIN
    dense = blocks.Q8_0 if carrying else wanted or DENSE_DEFAULT
    chosen = {}
    for place in places(model.spec):
        weight, slot = model.weights[place.slot.name], place.slot
        outer = slot.role in OUTER_ROLES
        if len(slot.shape) == 1:
            chosen[place] = blocks.F32
        elif carrying and isinstance(weight, QuantizedView):
            chosen[place] = _carrier(slot.name, weight.scheme, weight.shape[1], wanted, outer=outer)
        else:
            chosen[place] = _dense_type(slot, blocks.Q8_0 if outer and dense not in PLAIN else dense)
    return chosen


def _dense_type(slot: TensorSlot, block: BlockType) -> BlockType:
    """What a dense matrix becomes where `block` is wanted: f16 where its rows are not whole blocks."""
    if slot.shape[1] % block.elements == 0:
        return block
    if block not in AS_THEY_STAND:
        return blocks.F16
    whole = [other.name.lower() for other in AS_THEY_STAND if slot.shape[1] % other.elements == 0]
    raise UnsupportedSpec(
        f"{slot.name}: its rows of {slot.shape[1]} are not whole blocks of {block.elements}, as gguf's "
        f"{block.name.lower()} needs them",
        hint=f"choose type {' or '.join([*whole, blocks.F16.name.lower()])}",
    )


def _carrier(name: str, scheme: Scheme, cols: int, wanted: BlockType | None, *, outer: bool = False) -> BlockType:
    """The type that carries codes of `scheme`: the wanted one, or the smallest; q8_0 will do for embedding and head."""
    if isinstance(scheme, (SuperBlocks, Codebook)):
        return _own_block(name, scheme, None if outer else wanted)
    symmetric = isinstance(scheme, AffineGroups) and scheme.symmetric
    fitting = [block for block in (SYMMETRIC_CARRIERS if symmetric else OFFSET_CARRIERS) if holds(block, scheme, cols)]
    if wanted is None and fitting:
        return fitting[0]
    if wanted is not None and holds(wanted, scheme, cols):
        return wanted
    if outer and blocks.Q8_0 in fitting:
        return blocks.Q8_0
    every = [block.name.lower() for block in blocks.QUANTIZED.values() if holds(block, scheme, cols)]
    target = wanted.name.lower() if wanted is not None else "any block type"
    reason = obstacle(wanted or blocks.Q8_0, scheme, cols)
    raise UnsupportedSpec(
        f"{name}: gguf cannot carry {scheme} as {target}: {reason}",
        hint=f"choose type {' or '.join(every)}" if every else "choose type f16, bf16 or f32",
    )


def _own_block(name: str, scheme: Scheme, wanted: BlockType | None) -> BlockType:
    """The one type that holds super-blocks, or codes of a table, of such settings."""
    own = next((block for block, other in SCHEMES.items() if other == scheme), None)
    if own is None:
        raise UnsupportedSpec(f"{name}: gguf has no type that holds {scheme}", hint="choose type f16, bf16 or f32")
    if wanted not in (None, own):
        raise UnsupportedSpec(
            f"{name}: it lies in {own.name.lower()} blocks, and gguf's {wanted.name.lower()} would quantize it twice",
            hint="leave the type out to carry its blocks as they are, or choose f16, bf16 or f32",
        )
    return own


def main_type(chosen: Mapping[Place, BlockType]) -> BlockType:
    """The type of most weights within the blocks of the model."""
    counts: Counter[BlockType] = Counter()
    for place, block in chosen.items():
        if place.slot.layer is not None and len(place.slot.shape) == 2:
            counts[block] += place.slot.shape[0] * place.slot.shape[1]
    return counts.most_common(1)[0][0]


def file_number(spec: ModelSpec, chosen: Mapping[Place, BlockType]) -> int:
    """`general.file_type` of a file of these types: that of the mixture whose rules choose so, else by most weights."""
    main = main_type(chosen)
    if main not in LAYOUTS:
        return file_type_number(main)
    types = {place.name: block for place, block in chosen.items() if len(place.slot.shape) > 1}
    matrices = {place.name: place.slot.shape for place in chosen if len(place.slot.shape) > 1}
    for kind in MIXED.values():
        for weighted in (False, True):
            if tensor_types(matrices, traits_of(spec), kind, weighted=weighted) == types:
                return kind.id
    named = [kind for kind in MIXED.values() if kind.block is main]
    return next((kind for kind in named if kind.name.endswith("_m")), named[0]).id


def recorded(main: BlockType, options: ExportOptions, request: Request | None) -> dict[str, Any]:
    """What the manifest says was asked for."""
    common = {"arch": options.arch, **({"split_bytes": options.split_bytes} if options.split_bytes is not None else {})}
    if request is None:
        return {"type": main.name.lower(), **common}
    return {**request.to_json(), **common}

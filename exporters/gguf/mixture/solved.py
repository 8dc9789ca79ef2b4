"""Mixtures whose codes a solver has chosen: which scheme every tensor gets, and whether it has it."""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.errors import BadOption, InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.tensors import PLAIN, Place
from quantkit.exporters.gguf.types.schemes import SCHEMES
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView


def solved_schemes(chosen: Mapping[Place, BlockType]) -> dict[str, Scheme]:
    """The scheme of every tensor that is quantized, by weight name.

    Raises:
        UnsupportedSpec: a type whose codes no solver chooses.
    """
    found = {}
    for place, block in chosen.items():
        if block in PLAIN:
            continue
        if block not in SCHEMES:
            raise UnsupportedSpec(
                f"{place.name}: {block.name.lower()} is not calibrated here", hint="quantize with --method ternary"
            )
        found[place.slot.name] = SCHEMES[block]
    return found


def check_solved(model: Checkpoint, chosen: Mapping[Place, BlockType]) -> None:
    """Raise `BadOption` for a tensor of `model` that has not the codes of its type."""
    for place, block in chosen.items():
        weight = model.weights[place.slot.name]
        if block not in PLAIN and not (isinstance(weight, QuantizedView) and weight.scheme == SCHEMES[block]):
            raise BadOption(
                f"{place.slot.name} is not quantized to {block.name.lower()} yet",
                hint="the calibrated algorithm is a run of its own: quantkit.export with `calibrated`",
            )


def check_scheme(block: BlockType, recorded: Scheme, where: str) -> None:
    """Raise `InconsistentCheckpoint` where `recorded` is not the scheme of the block."""
    if recorded != SCHEMES[block]:
        raise InconsistentCheckpoint(f"{where} is recorded as {recorded}, {block.name} holds no such codes")

"""What every matrix may become where types are chosen by what they lose, and the options that ask for a choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.errors import BadOption
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.types import padding, tensor_bytes
from quantkit.exporters.gguf.mixture.request import ALGORITHMS, TENSOR_TYPES, refuse_quantized, wished
from quantkit.exporters.gguf.mixture.rules import EMBEDDING, Wishes, fitting
from quantkit.exporters.gguf.tensors import PLAIN, Place, places
from quantkit.exporters.gguf.types.schemes import SCHEMES
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.block_options import BlockOptions, Candidate, Candidates

WIDE, NARROW = 256, 32
"""Inputs that share a scale where ggml's integer kernels round them: as Q8_K for types of blocks as wide, as Q8_0 for
all others."""
FILE_NAMES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}
"""What a file is called most of whose weights have a type; others are called as the type is."""


def candidates(checkpoint: Checkpoint, options: ExportOptions, types: Sequence[str]) -> Candidates:
    """The types that each matrix may become, smallest first; one alone for those that the options give a type.

    types: those that are allowed; none = all that a solver has codes for.

    Raises:
        BadOption: an unknown type or algorithm, or options beside which nothing can be chosen.
        UnsupportedSpec: weights that are quantized already.
    """
    choices = options.blocks or BlockOptions()
    given = ("--pure" if choices.pure else "--like") if choices.pure or choices.like else f"--type {options.type}"
    if options.type is not None or choices.pure or choices.like is not None:
        raise BadOption(f"{given} says what a target size chooses", hint="leave it out, or name types to choose from")
    if choices.algorithm not in (None, *ALGORITHMS):
        raise BadOption(f"gguf has no algorithm {choices.algorithm!r}", hint=f"choose one of: {', '.join(ALGORITHMS)}")
    refuse_quantized(checkpoint, "a mixture", asked=False)
    allowed = [_allowed(name) for name in types] or list(SCHEMES)
    wishes = wished(choices, tied=checkpoint.spec.tie_word_embeddings)
    found = {}
    for place in _matrices(checkpoint):
        wanted = _wanted(wishes, place, tied=checkpoint.spec.tie_word_embeddings)
        cols = place.slot.shape[1]
        blocks = dict.fromkeys(fitting(block, cols) for block in ([wanted] if wanted is not None else allowed))
        own = [_candidate(place, block) for block in blocks]
        found[place.slot.name] = tuple(sorted(own, key=lambda one: one.nbytes))
    return found


def choosing(checkpoint: Checkpoint, options: ExportOptions, chosen: Mapping[str, str]) -> ExportOptions:
    """`options` with the chosen type of every matrix, by weight name."""
    counts: Counter[str] = Counter()
    patterns = []
    for place in _matrices(checkpoint):
        kind = chosen[place.slot.name]
        counts[kind] += (place.slot.layer is not None) * place.slot.shape[0] * place.slot.shape[1]
        patterns.append(f"^{place.name.replace('.', chr(92) + '.')}$={kind}")
    main = next((kind for kind, _ in counts.most_common() if TENSOR_TYPES[kind] not in PLAIN), "q8_0")
    choices = options.blocks or BlockOptions()
    algorithm = choices.algorithm or ALGORITHMS[0]
    blocks = replace(choices, algorithm=algorithm, tensor_types=tuple(patterns), output_type=None, embedding_type=None)
    return replace(options, type=FILE_NAMES.get(main, main), blocks=blocks)


def _matrices(checkpoint: Checkpoint) -> list[Place]:
    return [place for place in places(checkpoint.spec) if len(place.slot.shape) > 1]


def _wanted(wishes: Wishes, place: Place, *, tied: bool) -> BlockType | None:
    """What the user gives a matrix; a table that is both is the head as well."""
    wanted = wishes.of(place.name)
    return wishes.output if wanted is None and tied and place.name == EMBEDDING else wanted


def _allowed(name: str) -> BlockType:
    block = TENSOR_TYPES.get(name.lower())
    if block is None or block not in SCHEMES:
        known = ", ".join(block.name.lower() for block in SCHEMES)
        raise BadOption(f"gguf cannot choose {name[:80]!r}", hint=f"choose among: {known}")
    return block


def _candidate(place: Place, block: BlockType) -> Candidate:
    size = tensor_bytes(block, place.slot.shape)
    plain = block in PLAIN
    if not plain and block not in SCHEMES:
        raise BadOption(f"{place.name}: a solver has no codes for {block.name.lower()}", hint="choose another type")
    return Candidate(
        type=block.name.lower(),
        scheme=None if plain else SCHEMES[block],
        nbytes=size + padding(size),
        input_run=None if plain else (WIDE if block.elements == WIDE else NARROW),
    )

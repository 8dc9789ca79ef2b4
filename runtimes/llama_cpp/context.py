"""How large a context llama.cpp is given for a sequence.

LongRoPE: llama.cpp chooses the short or the long factors once, by the size of the context it was given, not by the
sequence at hand. And it rounds that size up to a multiple of `GRANULE`: a context of 300 tokens has 512, and the
factors of 512. The context must therefore lie on the right side of the original one after rounding.
"""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import BadOption, EngineFailed
from quantkit.models.context import check_length
from quantkit.models.spec import ModelSpec

GRANULE = 256


def context_size(path: Path, spec: ModelSpec, length: int, *, smallest: int, spare: int = 0) -> int:
    """Tokens of context for a sequence of `length` tokens, whole granules that give it the right factors.

    `smallest` doubled until the sequence fits, no more than the model has.

    path: of the artifact, for messages. spare: room that the engine needs beyond the sequence.

    Raises:
        BadOption: no tokens, or more than the model's context holds.
        EngineFailed: LongRoPE factors that no context gives.
    """
    if length == 0:
        raise BadOption("no token ids to run")
    check_length(spec, length, to_come=spare)
    size = smallest
    while size < length + spare:
        size *= 2
    size = min(size, -(-spec.max_position_embeddings // GRANULE) * GRANULE)
    rope = spec.rope
    original = rope.original_max_position_embeddings
    if rope.short_factor == rope.long_factor or length > original:
        return size
    size = min(size, original // GRANULE * GRANULE)
    if size < length + spare:
        raise EngineFailed(
            f"{path}: llama.cpp cannot run {length} tokens with LongRoPE's short factors, which end at {original}: "
            f"it rounds contexts up to multiples of {GRANULE}"
        )
    return size

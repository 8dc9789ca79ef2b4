"""What a model can be asked: ids of its vocabulary, as many as it is made for, and what its kind of layers allows.

All else is refused beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.errors import BadOption, UnsupportedModel, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec


def check_length(spec: ModelSpec, tokens: int, *, to_come: int = 0, what: str = "a sequence") -> None:
    """Raise `BadOption` where `tokens` tokens, and `to_come` that follow them, exceed the model's context.

    what: the sequence, for the message.
    """
    limit = spec.max_position_embeddings
    if tokens + to_come > limit:
        beside = f" and {to_come} to come" if to_come else ""
        raise BadOption(f"{what} of {tokens} tokens{beside} exceeds the model's context of {limit}", hint="shorten it")


def checked_ids(spec: ModelSpec, token_ids: Sequence[int], *, known: int = 0, to_come: int = 0) -> list[int]:
    """The ids as a list of int.

    known, to_come: tokens before and after them that count for the length.

    Raises:
        BadOption: none, one that is not in the vocabulary, or more than the model's context.
    """
    ids = [int(token) for token in token_ids]
    if not ids or not all(0 <= token < spec.vocab_size for token in ids):
        raise BadOption(f"token ids must be one or more numbers below {spec.vocab_size}")
    check_length(spec, known + len(ids), to_come=to_come)
    return ids


def check_plain_heads(checkpoint: Checkpoint, container: str) -> None:
    """Raise `UnsupportedSpec` where attention is latent, and no engine is known that loads the container with it."""
    if checkpoint.spec.latent is not None:
        raise UnsupportedSpec(
            f"{checkpoint.path}: {container} is not written for latent attention (MLA), which "
            f"{checkpoint.spec.architecture} has",
            hint="export gguf, compressed-tensors, awq or hf",
        )


def check_dense(checkpoint: Checkpoint, verb: str) -> None:
    """Raise `UnsupportedModel` where layers are not those of a dense decoder; `verb`: what cannot be done with it."""
    lightning = checkpoint.spec.lightning
    if lightning is not None:
        raise UnsupportedModel(
            f"{checkpoint.path}: quantkit cannot {verb} a model with lightning attention, which "
            f"{len(lightning.layers)} of its {checkpoint.spec.num_hidden_layers} layers are",
            hint="`quantkit inspect` shows it, and `quantkit run --engine reference` runs it",
        )

"""How many tokens a model is made for: what is longer is refused before anything is computed."""

from __future__ import annotations

from quantkit.errors import BadOption
from quantkit.models.spec import ModelSpec


def check_length(spec: ModelSpec, tokens: int, *, to_come: int = 0, what: str = "a sequence") -> None:
    """Raise `BadOption` where `tokens` tokens, and `to_come` that follow them, exceed the model's context.

    what: the sequence, for the message.
    """
    limit = spec.max_position_embeddings
    if tokens + to_come > limit:
        beside = f" and {to_come} to come" if to_come else ""
        raise BadOption(f"{what} of {tokens} tokens{beside} exceeds the model's context of {limit}", hint="shorten it")

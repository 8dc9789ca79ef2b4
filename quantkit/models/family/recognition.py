"""Which member of the family a config describes, by its class, its shape and what marks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from quantkit.errors import UnsupportedModel
from quantkit.models.family.members import MEMBERS, Member, Shape

UNKNOWN = "no published member of the family has this shape"
_SHAPE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_CLASSES = {"MiniCPMForCausalLM": "minicpm", "MiniCPM4ForCausalLM": "minicpm", "LlamaForCausalLM": "llama"}


def refused_member(config: Mapping[str, Any]) -> Member | None:
    """The member that a config.json describes, if it is one that is not taken."""
    classes = config.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    architectures = {_CLASSES.get(name, name) for name in names}
    for member in MEMBERS:
        by_class = member.architecture in architectures
        marked = all(config.get(key) == value for key, value in member.marks.items())
        if member.refused is not None and by_class and marked:
            return member
    return None


@contextmanager
def naming_member(config: Mapping[str, Any]) -> Iterator[None]:
    """Add to an `UnsupportedModel` that is raised within which member of the family the config describes."""
    try:
        yield
    except UnsupportedModel as error:
        member = refused_member(config)
        if member is None:
            raise
        raise UnsupportedModel(f"{error} (this is {member.name}: {member.refused})", hint=error.hint) from None


def described(facts: Mapping[str, Any], architecture: str) -> str:
    """Which member a model that is taken is, in words.

    Args:
        facts: what config.json says, every default spoken out: the keys of a shape, vocab_size and
            max_position_embeddings.
        architecture: that of the `ModelSpec`.
    """
    shape = Shape(*(facts[key] for key in _SHAPE_KEYS))
    taken = [
        member
        for member in MEMBERS
        if member.shape == shape and member.refused is None and _may_be(member.architecture, architecture)
    ]
    alike = [member for member in taken if member.vocabulary == facts["vocab_size"]]
    exact = [member for member in alike if facts["max_position_embeddings"] in member.contexts]
    if exact:
        return _named(exact) + _folded(exact, architecture)
    if alike:
        context = facts["max_position_embeddings"]
        return f"{_named(alike)}{_folded(alike, architecture)}, with a context of {context:,}"
    if taken:
        vocabulary = facts["vocab_size"]
        return f"the shape of {_named(taken)}{_folded(taken, architecture)}, with a vocabulary of {vocabulary:,}"
    return UNKNOWN


def _may_be(published: str, architecture: str) -> bool:
    """Whether a member can have another architecture than its own: none that are limited are folded into a Llama."""
    limited = {member.architecture for member in MEMBERS if member.limited is not None}
    return published == architecture or not {published, architecture} & limited


def _named(members: Sequence[Member]) -> str:
    others = tuple(other for member in members for other in member.also)
    also = f" (or {', '.join(others)}: the same config)" if others else ""
    return " or ".join(member.name for member in members) + also


def _folded(members: Sequence[Member], architecture: str) -> str:
    return ", folded into a Llama" if all(m.architecture != architecture for m in members) else ""

"""What a user chooses about an ONNX graph, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantkit.errors import BadOption
from quantkit.exporters.onnx.elements import TYPES, Element
from quantkit.models.checkpoint import ATTENTIONS
from quantkit.models.spec import ModelSpec
from quantkit.protocols import ExportOptions

CONTAINER = "onnx"
CONTRIB, STANDARD = "contrib", "standard"
OPS = (CONTRIB, STANDARD)
DENSE, SPARSE = ATTENTIONS


@dataclass(frozen=True, slots=True)
class Settings:
    """type: what is computed in, "f32" or "f16". ops: one of `OPS`. context: positions that rotations are baked for.

    attention: `DENSE` or `SPARSE`.
    """

    type: str
    ops: str
    context: int
    attention: str = DENSE

    @property
    def element(self) -> Element:
        """The type of activations, dense weights and scales."""
        return TYPES[self.type]

    @property
    def contrib(self) -> bool:
        """Whether the graph has operators of onnxruntime besides those of ONNX."""
        return self.ops == CONTRIB

    @property
    def sparse(self) -> bool:
        """Whether attention is sparse."""
        return self.attention == SPARSE


def settings_of(options: ExportOptions, spec: ModelSpec) -> Settings:
    """The settings that `options` ask for; float32, onnxruntime's operators and the model's whole context by default.

    Raises:
        BadOption: an unknown type, set of operators or attention, a context that the model does not have, or sparse
            attention of a model that does not say how, or in onnxruntime's operators.
    """
    if options.type not in (None, *TYPES):
        raise BadOption(f"{CONTAINER} has no type {options.type!r}", hint=f"choose one of: {', '.join(TYPES)}")
    if options.ops not in (None, *OPS):
        raise BadOption(f"{CONTAINER} has no operators {options.ops!r}", hint=f"choose one of: {', '.join(OPS)}")
    context = spec.max_position_embeddings if options.context is None else options.context
    if not 1 <= context <= spec.max_position_embeddings:
        raise BadOption(
            f"a context of {context} tokens is none of this model's", hint=f"choose 1 to {spec.max_position_embeddings}"
        )
    _check_attention(options, spec)
    ops = options.ops or (STANDARD if options.attention == SPARSE else CONTRIB)
    return Settings(options.type or "f32", ops, context, options.attention)


def _check_attention(options: ExportOptions, spec: ModelSpec) -> None:
    if options.attention not in ATTENTIONS:
        raise BadOption(
            f"{CONTAINER} has no attention {options.attention!r}", hint=f"choose one of: {', '.join(ATTENTIONS)}"
        )
    if options.attention == SPARSE and spec.sparse is None:
        raise BadOption(
            "the model's config.json has no sparse_config, which would say how blocks of tokens are chosen",
            hint="add one to config.json, or leave --attention out",
        )
    if options.attention == SPARSE and options.ops == CONTRIB:
        raise BadOption("sparse attention is written in operators of ONNX alone", hint="leave --ops out")


def factor_lists(spec: ModelSpec, context: int) -> Mapping[str, int]:
    """The rotations that a graph for `context` tokens needs: name to the length of a text that is turned so.

    Two where LongRoPE's lists differ and texts may be longer than the original context; else one.
    """
    original = spec.rope.original_max_position_embeddings
    if spec.rope.turns_alike(min(original, context), context):
        return {"": context}
    return {"short_": original, "long_": context}


def context_notes(spec: ModelSpec, settings: Settings) -> Iterator[str]:
    """What the baked rotations mean to a user."""
    if settings.context < spec.max_position_embeddings:
        yield f"the graph takes up to {settings.context} tokens, of {spec.max_position_embeddings} that the model can"
    if spec.rope.kind == "dynamic":
        yield f"the graph ends at {settings.context} tokens, and with it what dynamic NTK does to longer texts"
    if len(factor_lists(spec, settings.context)) > 1:
        original = spec.rope.original_max_position_embeddings
        yield (
            f"LongRoPE: a run over more than {original} tokens turns by the long factors, but keys in the cache keep "
            f"theirs; a text that grows beyond {original} should be read anew"
        )

"""Text from an artifact: `generate`, any engine, the same sampling everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from quantkit import registry
from quantkit.errors import BadOption, MalformedFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_length
from quantkit.protocols import Runtime
from quantkit.text.chat_template import PLAIN_CHAT, ChatOptions
from quantkit.text.tokenizer import StreamDecoder, Tokenizer, open_tokenizer
from quantkit.verification.generation import generated_tokens
from quantkit.verification.sparse.oracle import engine_attending

MAX_TOKENS, MAX_SEED = 1 << 31, (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    max_tokens: at most so many. temperature: 0 takes the most likely token; else logits are divided by it. top_p:
    sample among the fewest tokens that together reach this share of probability. seed: of the random numbers. One out
    of its range raises `BadOption`.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise BadOption(f"max_tokens must be from 1 to {MAX_TOKENS:,}, is {self.max_tokens:,}")
        if not 0 <= self.seed <= MAX_SEED:
            raise BadOption(f"seed must be from 0 to {MAX_SEED:,}, is {self.seed:,}")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:  # NaN is neither
            raise BadOption(
                f"temperature must be finite and 0 or more, top_p in (0, 1]; are {self.temperature} and {self.top_p}"
            )


DEFAULTS = Sampling()


@dataclass(slots=True, eq=False)
class Continuation:
    """A text that is being continued; iterate over it for the pieces of what follows.

    engine: who computes. prompt: what is continued, in the words of the chat template if there was one. token_ids: of
    the pieces so far. notes: what there is to say about it, in lines, once it has ended.
    """

    engine: str
    prompt: str
    token_ids: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()))

    def __iter__(self) -> Iterator[str]:
        return self._pieces


def generate(
    artifact: str | Path,
    prompt: str,
    sampling: Sampling = DEFAULTS,
    *,
    chat: bool | ChatOptions = False,
    engine: str = "auto",
    attention: str | None = None,
    variant: str | None = None,
) -> Continuation:
    """Continue a text.

    Args:
        artifact: a model folder, a quantized folder, or a single-file artifact.
        prompt: what to continue.
        sampling: how many tokens, and how they are chosen.
        chat: whether the prompt is a user's turn of the model's chat template, or what the template is given besides;
            its clock shows the present unless told otherwise.
        engine: a runtime's name; "auto" = the first real engine here that runs the artifact, else the reference.
        attention: "sparse" = as the model's `sparse_config` says, which the reference can with any artifact; "dense";
            None = as the container attends by itself.
        variant: as which published code it attends sparsely, one of the reference's; None = the default.

    Returns:
        The continuation, which computes while it is iterated over. An end token or the end of the context ends it.

    Raises:
        BadOption: no such engine, one that attends otherwise, an option out of range, a model without tokenizer or
            (such a) chat template, or a prompt that leaves no room in the model's context.
        MalformedFile: the chat template fails.
        What opening the artifact and loading it raise; all are `QuantkitError`s.
    """
    path = Path(artifact)
    checkpoint = registry.open_checkpoint(path)
    tokenizer = open_tokenizer(checkpoint)
    options = PLAIN_CHAT if chat is True else chat
    text = _user_turn(tokenizer, prompt, options) if options else prompt
    token_ids = tokenizer.encode(text)
    check_length(checkpoint.spec, len(token_ids), to_come=1, what="the prompt")
    runtime = engine_attending(engine, checkpoint, attention, variant)
    made = Continuation(runtime.name, text)
    made._pieces = _pieces(made, path, checkpoint, tokenizer, token_ids, runtime=runtime, sampling=sampling)
    return made


def _user_turn(tokenizer: Tokenizer, prompt: str, options: ChatOptions) -> str:
    now = options.now or datetime.now()  # a template prints local time without a zone
    try:
        return tokenizer.chat([{"role": "user", "content": prompt}], options=replace(options, now=now))
    except MalformedFile as error:
        hint = (
            "give what it asks for (`run` has --system, --tools, --template, --template-option), or continue plain text"
        )
        raise MalformedFile(str(error), hint=hint) from None


def _pieces(
    made: Continuation,
    path: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    runtime: Runtime,
    sampling: Sampling,
) -> Iterator[str]:
    context = checkpoint.spec.max_position_embeddings
    room = context - len(prompt)
    decoder = StreamDecoder(tokenizer, prompt)
    with runtime.open(path) as session:
        for token in generated_tokens(
            session,
            prompt,
            max_tokens=min(sampling.max_tokens, room),
            eos_token_ids=checkpoint.spec.eos_token_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        ):
            made.token_ids.append(token)
            yield decoder.push(token)
    yield decoder.finish()
    if len(made.token_ids) == room < sampling.max_tokens:
        made.notes.append(f"the text ends where the model's context of {context} tokens does")

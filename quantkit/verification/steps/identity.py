"""Who a model is, apart from its weights: every scalar of its `ModelSpec`, its tokenizer, its template, its end tokens.

Containers keep scalars as float32 (GGUF) or as decimals; two floats are the same here when they are the same float32,
which is what engines compute with. A folded artifact is held to the original's `ModelSpec.folded()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from quantkit.errors import GoldenMismatch, MalformedFile, MissingDependency, QuantkitError, UnsupportedModel
from quantkit.files.json_file import parse_json
from quantkit.models.architectures._latent import LatentSpec
from quantkit.models.architectures._lightning import LightningSpec
from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.models.architectures.minicpm3 import with_norms_of
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.layouts.small_files import CARD_NAME, is_legal
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.templates import OLD_TEMPLATE_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER
from quantkit.text.tokenizer import open_tokenizer
from quantkit.text.tokenizer_files import CONFIG_FILE, TOKENIZER_FILE, read_object
from quantkit.text.tokenizers.classes import followed_rules
from quantkit.text.tokenizers.notes import contradicted_flags
from quantkit.text.tokenizers.translation import BYTE_LEVEL
from quantkit.text.tokenizers.writing import FILES
from quantkit.text.vocabulary import has_vocabulary, read_vocabulary
from quantkit.verification.prompts import Prompt

GENERATION_FILE = "generation_config.json"
GENERATION_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
OWN_FILES = (
    *(name for name in FILES if name != TOKENIZER_FILE),
    TEMPLATE_FILE,
    OLD_TEMPLATE_FILE,
    "config.json",
)
"""Compared by what they mean (`TextFacts`): a container without files gives them back in other words. So is
tokenizer.json, where a flat list of tokens says all that it says."""
_OTHER_SPACES = (
    "its container has no words for the spaces of the original's tokenizer; "
    "texts with special tokens get other ids and are not compared"
)
PAD, METASPACE = "pad_token_id", "metaspace"
CONTRADICTED = "contradicted"
"""Of `TextFacts.rules`: flags of tokenizer_config.json that tokenizer.json contradicts; only where there are any."""


@dataclass(frozen=True, slots=True)
class TextFacts:
    """A tokenizer as `quantkit.text.vocabulary` sees it.

    vocabulary: SHA-256 over text, score (float32) and kind of every token by id. template: SHA-256 of the chat
    template, the kind of its line ends and a last one aside; None = there is none. rules: special tokens and what
    encoding adds. files: SHA-256 of every other file that travels with the model but licences and its card, JSON in
    canonical form.
    """

    vocabulary: str | None
    template: str | None
    rules: Mapping[str, Any]
    files: Mapping[str, str]


def text_facts(checkpoint: Checkpoint) -> TextFacts:
    """The facts of the tokenizer and the small files of `checkpoint`; without a tokenizer `vocabulary` is None.

    Raises:
        What `read_vocabulary` raises.
    """
    files = {
        name: _file_digest(name, read())
        for name, read in sorted(checkpoint.files.items())
        if not (name in (*OWN_FILES, CARD_NAME) or name.startswith(TEMPLATE_FOLDER) or is_legal(name))
    }
    if not has_vocabulary(checkpoint):
        return TextFacts(None, None, {}, files)
    try:
        vocabulary = read_vocabulary(checkpoint)
    except UnsupportedModel:  # of a kind that is not read: its files are compared as they are
        return TextFacts(None, None, {}, files)
    if vocabulary.obstacle is None and not vocabulary.edges and not vocabulary.metaspace:
        files.pop(TOKENIZER_FILE, None)  # the vocabulary says all of it
    sha256 = hashlib.sha256(json.dumps(vocabulary.tokens, ensure_ascii=True).encode())
    sha256.update(np.array(vocabulary.scores, "<f4").tobytes())
    sha256.update(np.array([int(kind) for kind in vocabulary.kinds], "<i4").tobytes())
    if vocabulary.model == BYTE_LEVEL:
        sha256.update(json.dumps([vocabulary.pre, vocabulary.merges], ensure_ascii=True).encode())
    names = ("bos_token_id", "eos_token_id", "unk_token_id", PAD, "add_bos", "add_eos", "add_space_prefix", METASPACE)
    return TextFacts(
        sha256.hexdigest(),
        None if vocabulary.chat_template is None else _text_digest(vocabulary.chat_template),
        {
            **{name: getattr(vocabulary, name) for name in names},
            **{f"template {name!r}": _text_digest(text) for name, text in vocabulary.named_templates},
            **({CONTRADICTED: contradicted} if (contradicted := _contradicted_flags(checkpoint)) else {}),
        },
        files,
    )


def _contradicted_flags(checkpoint: Checkpoint) -> list[str]:
    try:
        rules = followed_rules(checkpoint.files)
    except UnsupportedModel:  # `tokenizer.model` lies beside it, and is followed
        return []
    return [] if rules is None else sorted(contradicted_flags(read_object(checkpoint.files, CONFIG_FILE), rules))


def _text_digest(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")  # as Jinja reads it
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def _file_digest(name: str, data: bytes) -> str:
    if name.endswith(".json"):
        try:
            value = parse_json(data, name)
        except MalformedFile:
            return hashlib.sha256(data).hexdigest()
        if name == GENERATION_FILE:  # the rest of it is taste, and tools write their version into it
            value = {key: value.get(key) for key in GENERATION_TOKENS}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return (
        hashlib.sha256(data).hexdigest()
        if not name.endswith(".jinja")
        else _text_digest(data.decode("utf-8", "replace"))
    )


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """Every field of a spec; `spec_from_json` inverts it."""
    return asdict(spec)


def spec_from_json(data: object, where: str) -> ModelSpec:
    """Inverse of `spec_to_json`.

    Raises:
        GoldenMismatch: fields that this version of quantkit does not have, or lacks.
    """
    try:
        if not isinstance(data, Mapping):
            raise TypeError("not an object")
        given = {key: _untyped(value) for key, value in data.items()}
        sparse, lightning, latent = (given.get(name) for name in ("sparse", "lightning", "latent"))
        spec = ModelSpec(
            **{
                **given,
                "rope": RopeSpec(**given["rope"]),
                "sparse": None if sparse is None else SparseSpec(**sparse),
                "lightning": None if lightning is None else LightningSpec(**lightning),
                "latent": None if latent is None else LatentSpec(**latent),
            }
        )
        sizes = (spec.vocab_size, spec.hidden_size, spec.num_hidden_layers)
        if not all(type(size) is int and 0 < size <= 1 << 24 for size in sizes):
            raise ValueError("a size is out of range")
        spec.slots()
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
        raise GoldenMismatch(
            f"{where}: its model is not one that this version describes: {str(error)[:80]}",
            hint="record it again from the original model: quantkit golden MODEL --out FILE",
        ) from None
    return spec


def _untyped(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return tuple(map(_untyped, value))
    if isinstance(value, Mapping):
        return {key: _untyped(item) for key, item in value.items()}
    return value


def expected_spec(original: ModelSpec, artifact: ModelSpec) -> ModelSpec:
    """The original as the artifact must describe it: folded where the artifact is of another family, if that can be.

    What norms of latents add is its engines', as far as `with_norms_of` says.
    """
    if artifact.architecture == original.architecture:
        return with_norms_of(original, artifact)
    try:
        return original.folded()
    except UnsupportedModel:
        return original


def spec_differences(expected: object, found: object, prefix: str = "") -> Iterator[str]:
    """One line for every field of two specs that differs; `pad_token_id` may be missing where it was never used."""
    assert is_dataclass(expected)
    for field in (field for field in fields(expected) if field.compare):
        one, other = getattr(expected, field.name), getattr(found, field.name)
        if is_dataclass(one) and is_dataclass(other):
            yield from spec_differences(one, other, f"{prefix}{field.name}.")
        elif not _same(one, other) and not (field.name == PAD and other is None):
            yield f"{prefix}{field.name} is {_shown(other)}, the original's is {_shown(one)}"


def _same(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return numbers and np.float32(one) == np.float32(other)  # type: ignore[arg-type]
    return one == other


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 4:
        return f"[{', '.join(f'{item:.7g}' for item in value[:3])}, ... {len(value)} in all]"
    return f"{value:.9g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)


def text_differences(expected: TextFacts, found: TextFacts) -> Iterator[str]:
    """One line for everything about the tokenizer that is not the original's."""
    if expected.vocabulary is not None and found.vocabulary is None:
        yield "it has no tokenizer, the original has one"
    elif expected.vocabulary is not None:
        if found.vocabulary != expected.vocabulary:
            yield "its vocabulary is not the original's: texts, scores or kinds of tokens differ"
        for name, value in expected.rules.items():
            other = found.rules.get(name)
            if other != value and not (name == PAD and other is None) and name not in (METASPACE, CONTRADICTED):
                yield f"the tokenizer's {name} is {other}, the original's is {value}"
        for flag in set(found.rules.get(CONTRADICTED, ())) - set(expected.rules.get(CONTRADICTED, ())):
            yield f"its {flag} in {CONFIG_FILE} is not the original's, and older versions of transformers go by it"
        if found.template != expected.template:
            what = "has no chat template" if found.template is None else "has another chat template than the original"
            yield f"it {what}"
    for name, digest in expected.files.items():
        if found.files.get(name, digest) != digest:
            yield f"its {name} says other things than the original's"
    if TOKENIZER_FILE in found.files and TOKENIZER_FILE not in expected.files and expected.vocabulary is not None:
        yield f"its {TOKENIZER_FILE} splits text by rules that the original's does not have"


def comparable_prompts(
    checkpoint: Checkpoint, prompts: Sequence[Prompt], expected: TextFacts, found: TextFacts
) -> tuple[Sequence[Prompt], list[str]]:
    """The prompts that the artifact's tokenizer must read as the original's, and a note where some are left out.

    Where the container has no words for the original's rule for the space before a text, texts with special tokens are.
    """
    if (expected.rules.get(METASPACE) or "") == (found.rules.get(METASPACE) or ""):
        return prompts, []
    kinds, plain = read_vocabulary(checkpoint).kinds, (TokenKind.NORMAL, TokenKind.BYTE)
    return [p for p in prompts if all(kinds[index] in plain for index in p.token_ids[1:])], [_OTHER_SPACES]


def token_differences(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Iterator[str]:
    """One line for every prompt that the artifact's tokenizer reads otherwise; nothing can be said of a cut prompt's
    end, of one that never was text, nor where the library that splits text is missing."""
    try:
        tokenizer = open_tokenizer(checkpoint)
    except MissingDependency:
        return
    for prompt in (prompt for prompt in prompts if prompt.text):
        ids = tuple(tokenizer.encode(prompt.text))
        common = min(len(ids), len(prompt.token_ids))
        if ids[:common] != prompt.token_ids[:common]:
            place = next(i for i in range(common) if ids[i] != prompt.token_ids[i])
            yield f"its tokenizer reads prompt {prompt.name!r} otherwise from token {place} on"


def read_facts(checkpoint: Checkpoint) -> TextFacts | str:
    """`text_facts`, or one line that says why the tokenizer cannot be read."""
    try:
        return text_facts(checkpoint)
    except QuantkitError as error:
        return f"its tokenizer cannot be read: {error}"

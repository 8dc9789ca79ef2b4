"""The tokenizer inside a GGUF file: the keys `tokenizer.*`, written and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from quantkit.errors import InconsistentCheckpoint, MalformedFile, UnsupportedSpec
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.container.header import entry, number_array, string_array
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.keys import Keys
from quantkit.exporters.gguf.metadata import CONFIG_KEY
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizers.splitting import splitting_named
from quantkit.text.tokenizers.translation import BYTE_LEVEL, SENTENCEPIECE
from quantkit.text.tokenizers.writing import file_names, vocabulary_files
from quantkit.text.vocabulary import Vocabulary

END_OF_TURN = "<|im_end|>"
END_TEXTS = (END_OF_TURN, "</s>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>")
"""Tokens at which llama.cpp stops whatever the keys say (`llama_vocab::impl::load`)."""
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""The three tokens at which it stops because the keys say so."""

_KNOWN_KEYS = frozenset(
    {"model", "pre", "tokens", "scores", "token_type", "token_type_count", "merges"}
    | {"add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix"}
)
_WHERE = {
    "always": "before a text and after a special token only where there is none",
    "first": "before a text where there is none, and none after a special token",
}
"""What the rule `Metaspace` of tokenizer.json does, by its scheme."""
_KINDS = {int(kind): kind for kind in TokenKind}
_INTERNALS = re.compile(r"__[a-z_]+__")
_TEMPLATE, _TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"


def end_ids(vocabulary: Vocabulary, eos_token_ids: Sequence[int]) -> tuple[dict[str, int | None], list[int]]:
    """The ids under `END_KEYS` for a text that ends with any of `eos_token_ids`, and those that find no place."""
    turn = vocabulary.tokens.index(END_OF_TURN) if END_OF_TURN in vocabulary.tokens else None
    ids = dict(zip(END_KEYS, (vocabulary.eos_token_id, turn, None), strict=True))
    rest = [i for i in eos_token_ids if i not in ids.values() and vocabulary.tokens[i] not in END_TEXTS]
    places = [key for key in END_KEYS if ids[key] is None]
    if turn is not None:
        places.append("eot_token_id")  # the end of turn gives way last: llama.cpp knows it by its text
    ids |= zip(places, rest, strict=False)
    return ids, rest[len(places) :]


def check_ends(gguf: GGUFFile, vocabulary: Vocabulary, eos_token_ids: Sequence[int]) -> None:
    """Refuse a file whose own config ends a text with tokens that its keys do not name: engines would not stop there.

    Raises:
        InconsistentCheckpoint: a key that quantkit would have written otherwise.
    """
    if CONFIG_KEY not in gguf.metadata:
        return
    for key, wanted in end_ids(vocabulary, eos_token_ids)[0].items():
        found = gguf.metadata.get(f"tokenizer.ggml.{key}")
        if found != wanted:
            raise InconsistentCheckpoint(
                f"{gguf.path}: {CONFIG_KEY} ends a text with {list(eos_token_ids)}, which makes tokenizer.ggml.{key} "
                f"{wanted}; it is {found}"
            )


def vocabulary_entries(vocabulary: Vocabulary | None, eos_token_ids: Sequence[int]) -> list[bytes]:
    """tokenizer.*; a model without a tokenizer says so, and takes token ids only.

    eos_token_ids: the tokens that end a text, see `end_ids`.

    Raises:
        UnsupportedSpec: llama.cpp has no tokenizer that splits text so; the message says why.
        InconsistentCheckpoint: two chat templates whose names give one key.
    """
    if vocabulary is None:
        return [entry("tokenizer.ggml.model", ValueType.STRING, "none")]
    if vocabulary.obstacle is not None:
        raise UnsupportedSpec(
            f"a GGUF file cannot hold the tokenizer: {vocabulary.obstacle}",
            hint="take another container, or take the tokenizer's files out of a copy of the folder: token ids only",
        )
    entries = [
        entry("tokenizer.ggml.model", ValueType.STRING, vocabulary.model),
        entry("tokenizer.ggml.pre", ValueType.STRING, vocabulary.pre),
        string_array("tokenizer.ggml.tokens", vocabulary.tokens),
        number_array("tokenizer.ggml.token_type", ValueType.INT32, vocabulary.kinds),
        string_array("tokenizer.ggml.merges", vocabulary.merges)
        if vocabulary.model == BYTE_LEVEL
        else number_array("tokenizer.ggml.scores", ValueType.FLOAT32, vocabulary.scores),
    ]
    ends, _ = end_ids(vocabulary, eos_token_ids)
    ids = {
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": ends["eos_token_id"],
        "unknown_token_id": vocabulary.unk_token_id,
        "padding_token_id": vocabulary.pad_token_id,
        "eot_token_id": ends["eot_token_id"],
        "eom_token_id": ends["eom_token_id"],
    }
    flags = {
        "add_bos_token": vocabulary.add_bos,
        "add_sep_token": False,
        "add_eos_token": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
    }
    entries += [entry(f"tokenizer.ggml.{k}", ValueType.UINT32, v) for k, v in ids.items() if v is not None]
    entries += [entry(f"tokenizer.ggml.{k}", ValueType.BOOL, v) for k, v in flags.items()]
    if vocabulary.chat_template is not None:
        entries.append(entry(_TEMPLATE, ValueType.STRING, vocabulary.chat_template))
    if vocabulary.named_templates:
        named = {_key_name(name): text for name, text in vocabulary.named_templates}
        if len(named) < len(vocabulary.named_templates):
            names = ", ".join(name for name, _ in vocabulary.named_templates)
            raise InconsistentCheckpoint(f"of the chat templates {names[:160]}, two have one name in a GGUF file")
        entries.append(string_array(_TEMPLATES, list(named)))
        entries += [entry(f"{_TEMPLATE}.{name}", ValueType.STRING, text) for name, text in named.items()]
    return entries


def tokenizer_notes(model: Checkpoint, vocabulary: Vocabulary | None) -> Iterator[str]:
    """What a GGUF file does not say of the files beside the weights, one line each."""
    if vocabulary is None:
        yield "the source has no tokenizer; llama.cpp loads such a file, but its server and chat need one"
        return
    if vocabulary.normalizer != "identity":
        yield f"the tokenizer changes text by the rule {vocabulary.normalizer!r}, which GGUF cannot express"
    yield from vocabulary.edges
    if vocabulary.metaspace:
        yield (
            f"the tokenizer puts a space {_WHERE[vocabulary.metaspace]}, llama.cpp before every text and after every "
            "special token: a text that begins so gets other ids there"
        )
    unheard = end_ids(vocabulary, model.spec.eos_token_ids)[1]
    if unheard:
        yield f"GGUF has no key for the end tokens {', '.join(map(str, unheard))}: llama.cpp does not stop at them"
    if vocabulary.eos_token_id is None:
        yield "the model names no end of text, which GGUF cannot say: llama.cpp takes a token of its own choice for it"


def _key_name(name: str) -> str:
    """A template's name as part of a key: letters, digits and underscores, as in gguf-py."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def read_tokenizer(gguf: GGUFFile, vocab_size: int) -> Vocabulary | str:
    """The file's vocabulary, or one line that says why it is left aside.

    Raises:
        MalformedFile: lists that are missing or wrong. InconsistentCheckpoint: another length than the embedding's.
    """
    keys = Keys(gguf, "tokenizer.ggml.")
    model = keys.text("model", "none")
    if model in ("none", "no_vocab"):
        return "the file has no tokenizer"
    if model not in (SENTENCEPIECE, BYTE_LEVEL):
        return f"its {model[:40]!r} tokenizer is not read"
    pre = keys.text("pre", "default")
    splitting = splitting_named(pre) if model == BYTE_LEVEL else None
    if model == BYTE_LEVEL and splitting is None:
        return f"its tokenizer cuts text by the rule {pre[:40]!r}, which is not known"
    tokens, kinds = keys.get("tokens", (list,)), keys.get("token_type", (np.ndarray,))
    scores = keys.get("scores", (np.ndarray,), np.zeros(len(tokens), np.float32) if splitting is not None else None)
    if not len(tokens) == len(scores) == len(kinds) == vocab_size:
        raise InconsistentCheckpoint(
            f"{gguf.path}: {len(tokens):,} tokens, {len(scores):,} scores and {len(kinds):,} token types "
            f"for an embedding of {vocab_size:,} rows"
        )
    if scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise MalformedFile(f"{gguf.path}: token scores must be finite 32-bit floats")
    if kinds.dtype.kind not in "iu" or not np.isin(kinds, list(TokenKind)).all():
        raise MalformedFile(f"{gguf.path}: token types must be integers from 1 to 6")
    bos, eos, unk = (None, None, None) if splitting is not None else (1, 2, 0)
    if CONFIG_KEY in gguf.metadata:  # where quantkit writes no first or last token, there is none
        bos, eos = None, None
    vocabulary = Vocabulary(
        tokens=tuple(tokens),
        scores=(0.0,) * vocab_size if splitting is not None else tuple(scores.tolist()),
        kinds=tuple(map(_KINDS.__getitem__, kinds.tolist())),
        bos_token_id=_token_id(keys, "bos_token_id", vocab_size, default=bos),
        eos_token_id=_token_id(keys, "eos_token_id", vocab_size, default=eos),
        unk_token_id=_token_id(keys, "unknown_token_id", vocab_size, default=unk),
        pad_token_id=_token_id(keys, "padding_token_id", vocab_size, default=None),
        add_bos=keys.flag("add_bos_token", default=splitting is None or splitting.adds_bos),
        add_eos=keys.flag("add_eos_token", default=False),
        add_space_prefix=keys.flag("add_space_prefix", default=True) if splitting is None else False,
        chat_template=Keys(gguf, "tokenizer.").text("chat_template", "") or None,
        named_templates=tuple(
            (key.removeprefix(f"{_TEMPLATE}."), Keys(gguf, "").text(key))
            for key in gguf.metadata
            if key.startswith(f"{_TEMPLATE}.")
        ),
        model=model,
    )
    if splitting is None:
        return vocabulary
    return replace(vocabulary, pre=splitting.pre, merges=_merges(keys, vocabulary.tokens))


def _merges(keys: Keys, tokens: Sequence[str]) -> tuple[str, ...]:
    """The merges of a byte-level BPE, each of two tokens that together are a third; llama.cpp passes over others."""
    known = set(tokens)
    merges = keys.get("merges", (list,))
    for merge in merges:
        left, _, right = merge[1:].partition(" ") if isinstance(merge, str) else ("", "", "")
        left = merge[:1] + left
        if not {left, right, left + right} <= known:
            raise MalformedFile(f"{keys.gguf.path}: {str(merge)[:80]!r} is not a merge of two tokens into a third")
    return tuple(merges)


def unfollowed_keys(gguf: GGUFFile) -> Iterator[str]:
    """A line about keys of the tokenizer that are not understood and may change the ids of a text."""
    unknown = [
        key
        for key in gguf.metadata
        if key.startswith("tokenizer.ggml.")
        and key.removeprefix("tokenizer.ggml.") not in _KNOWN_KEYS
        and not key.endswith("_token_id")
    ]
    if unknown:
        yield f"keys of the tokenizer are not followed: {', '.join(unknown)[:160]}"


def template_notes(vocabulary: Vocabulary) -> Iterator[str]:
    """A line about each chat template that reaches for what no template needs: Python's own objects."""
    for name, text in (("", vocabulary.chat_template or ""), *vocabulary.named_templates):
        found = _INTERNALS.search(text)
        if found is not None:
            named = f" {name[:40]!r}" if name else ""
            yield (
                f"the chat template{named} reads Python's internals ({found[0][:40]!r}): it is rendered in a sandbox "
                "that refuses them; look at it before anything else renders it"
            )


def _token_id(keys: Keys, key: str, size: int, *, default: int | None) -> int | None:
    """A special token's id; llama.cpp's default for SentencePiece where the key is missing."""
    index = keys.optional_id(key)
    if key == "padding_token_id" and index is not None and not 0 <= index < size:
        return None  # it changes no text, and llama.cpp passes over it as well
    if index is not None and not 0 <= index < size:
        raise MalformedFile(f"{keys.gguf.path}: {keys.prefix}{key} {index} is not below {size}")
    if index is None and default is not None and default < size:
        return default
    return index


def files_of(vocabulary: Vocabulary | str) -> dict[str, Callable[[], bytes]]:
    """The tokenizer's files, made when the first one is asked for; none without a vocabulary."""
    if isinstance(vocabulary, str):
        return {}
    names = file_names(vocabulary)

    @cache
    def files() -> dict[str, bytes]:
        return vocabulary_files(vocabulary)

    def reader(name: str) -> Callable[[], bytes]:
        return lambda: files()[name]

    return {name: reader(name) for name in names}

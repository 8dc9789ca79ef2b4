"""The files of a Hugging Face folder made from a flat list of tokens, as a GGUF file has it.

tokenizer.json is written so that transformers splits a text as llama.cpp does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantkit.text.sentencepiece_model import WORD_BOUNDARY, SentencePieceModel, TokenKind, model_bytes
from quantkit.text.templates import DEFAULT
from quantkit.text.tokenizer_files import ADDED_FILE, CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE
from quantkit.text.tokenizer_json import splits
from quantkit.text.tokenizers.pieces import filler
from quantkit.text.tokenizers.rules import SPACE_BEFORE, SPACES_MARKED
from quantkit.text.tokenizers.splitting import splitting_named
from quantkit.text.tokenizers.translation import BYTE_LEVEL, SENTENCEPIECE
from quantkit.text.vocabulary import Vocabulary

FILES = (MODEL_FILE, TOKENIZER_FILE, ADDED_FILE, CONFIG_FILE)
"""What `vocabulary_files` makes, or some of it."""

_SPECIAL = (TokenKind.CONTROL, TokenKind.USER_DEFINED)
_SOUGHT = (*_SPECIAL, TokenKind.UNKNOWN)
_FIRST_OF_SPACES = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def sentencepiece_model(vocabulary: Vocabulary) -> bytes:
    """A `tokenizer.model` that encodes plain text as the vocabulary's original did.

    It ends before the run of added and unused tokens at the end, as MiniCPM's own file does; added tokens before
    that are control pieces, which SentencePiece never finds in a text.
    """
    end = _piece_count(vocabulary)
    unk = vocabulary.unk_token_id if vocabulary.unk_token_id is not None else 0
    kinds: list[TokenKind] = list(vocabulary.kinds[:end])
    kinds = [TokenKind.CONTROL if kind is TokenKind.UNKNOWN else kind for kind in kinds]
    kinds[unk] = TokenKind.UNKNOWN
    bos = vocabulary.bos_token_id
    return model_bytes(
        SentencePieceModel(
            pieces=vocabulary.tokens[:end],
            scores=vocabulary.scores[:end],
            kinds=tuple(kinds),
            unk_id=unk,
            bos_id=bos if bos is not None and bos < end else None,
            add_dummy_prefix=vocabulary.add_space_prefix,
            normalizer="identity",
        )
    )


def file_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The names of the files that `vocabulary_files` makes, without making them."""
    if vocabulary.model == BYTE_LEVEL:
        return TOKENIZER_FILE, CONFIG_FILE
    return FILES if _has_order(vocabulary) else (MODEL_FILE, ADDED_FILE, CONFIG_FILE)


def _has_order(vocabulary: Vocabulary) -> bool:
    """Whether no two ordinary pieces share a score, which would leave the order of merges open."""
    kinds = np.array(vocabulary.kinds)
    scores = np.array(vocabulary.scores)[kinds == TokenKind.NORMAL]
    return len(np.unique(scores)) == len(scores)


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """The files of a Hugging Face folder, some of `FILES`; `read_vocabulary` makes the same vocabulary of them, and
    transformers the ids that llama.cpp makes."""
    edges = {
        "first": vocabulary.bos_token_id if vocabulary.add_bos else None,
        "last": vocabulary.eos_token_id if vocabulary.add_eos else None,
    }
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    if vocabulary.model == BYTE_LEVEL:
        data = _byte_level_json(tokens, kinds, vocabulary.merges, vocabulary.pre, edges)
        return {TOKENIZER_FILE: data, CONFIG_FILE: _json_bytes(_tokenizer_config(vocabulary, fast=True))}
    end = _piece_count(vocabulary)
    files = {
        MODEL_FILE: sentencepiece_model(vocabulary),
        ADDED_FILE: _json_bytes({tokens[i]: i for i in range(end, len(tokens)) if kinds[i] in _SPECIAL}),
    }
    fast = _has_order(vocabulary)
    if fast:
        files[TOKENIZER_FILE] = _sentencepiece_json(
            tokens,
            vocabulary.scores,
            kinds,
            unk=vocabulary.unk_token_id,
            add_space_prefix=vocabulary.add_space_prefix,
            edges=edges,
        )
    return {**files, CONFIG_FILE: _json_bytes(_tokenizer_config(vocabulary, fast=fast))}


def _tokenizer_config(vocabulary: Vocabulary, *, fast: bool) -> dict[str, Any]:
    """tokenizer_config.json; fast: there is a tokenizer.json, which is to be read as it is."""

    def name(index: int | None) -> str | None:
        return None if index is None else vocabulary.tokens[index]

    pairs = enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    decoder = {
        str(index): _added_entry(token, kind)
        for index, (token, kind) in pairs
        if kind in (*_SPECIAL, TokenKind.UNKNOWN)
    }
    config: dict[str, Any] = {
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "added_tokens_decoder": decoder,
        "bos_token": name(vocabulary.bos_token_id),
        "clean_up_tokenization_spaces": False,
        "eos_token": name(vocabulary.eos_token_id),
        "pad_token": name(vocabulary.pad_token_id),
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "unk_token": name(vocabulary.unk_token_id),
    }
    if vocabulary.model == SENTENCEPIECE:
        config |= {"legacy": True, "sp_model_kwargs": {}, "spaces_between_special_tokens": False}
    template = vocabulary.chat_template
    if vocabulary.named_templates:
        every = [*([(DEFAULT, template)] if template is not None else []), *vocabulary.named_templates]
        return {**config, "chat_template": [{"name": name, "template": text} for name, text in every]}
    return config if template is None else {**config, "chat_template": template}


def _piece_count(vocabulary: Vocabulary) -> int:
    """Where the ordinary pieces end; what follows was added to, or missing from, `tokenizer.model`."""
    unk = vocabulary.unk_token_id or 0
    for index in range(len(vocabulary.tokens) - 1, unk, -1):
        unused = vocabulary.kinds[index] is TokenKind.UNUSED and vocabulary.tokens[index] == filler(index)
        if vocabulary.kinds[index] not in _SPECIAL and not unused:
            return index + 1
    return unk + 1


def _byte_level_json(
    tokens: Sequence[str], kinds: Sequence[TokenKind], merges: Sequence[str], pre: str, edges: Mapping[str, int | None]
) -> bytes:
    """A byte-level BPE that cuts text as llama.cpp's rule `pre`; `edges`: ids before ("first") and after a text."""
    splitting = splitting_named(pre)
    assert splitting is not None  # whoever read the file left other names aside
    cuts = [dict(step) for step in splitting.cuts]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": splitting.whole_words,
        "vocab": _vocab(tokens, kinds),
        "merges": [merge.split(" ", 1) for merge in merges],
    }
    return _tokenizer_json(
        added_tokens=_added(tokens, kinds),
        normalizer=None,
        pre_tokenizer=cuts[0] if len(cuts) == 1 else {"type": "Sequence", "pretokenizers": cuts},
        post_processor=_template(tokens, edges),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=model,
    )


def _sentencepiece_json(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[TokenKind],
    *,
    unk: int | None,
    add_space_prefix: bool,
    edges: Mapping[str, int | None],
) -> bytes:
    """A BPE that joins what SentencePiece joins, in the order of the scores, which must differ from each other."""
    wholes = [(tokens[left] + tokens[right], left, right) for left, right in splits(tokens, kinds)]
    ids = {text: index for index, text in enumerate(tokens)}
    ordered = sorted(wholes, key=lambda entry: (-scores[ids[entry[0]]], entry[1], entry[2]))
    steps = [*([SPACE_BEFORE] if add_space_prefix else []), SPACES_MARKED]
    back = {"type": "Replace", "pattern": {"String": WORD_BOUNDARY}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([_FIRST_OF_SPACES] if add_space_prefix else [])]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unk is None else tokens[unk],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": TokenKind.BYTE in kinds,
        "ignore_merges": False,
        "vocab": _vocab(tokens, kinds),
        "merges": [[tokens[left], tokens[right]] for _, left, right in ordered],
    }
    return _tokenizer_json(
        added_tokens=_added(tokens, kinds),
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        post_processor=_template(tokens, edges),
        decoder={"type": "Sequence", "decoders": decoders},
        model=model,
    )


def _added_entry(text: str, kind: TokenKind) -> dict[str, Any]:
    """How a token is looked for in a text: as llama.cpp does, by its letters alone."""
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": kind is not TokenKind.USER_DEFINED,
    }


def _vocab(tokens: Sequence[str], kinds: Sequence[TokenKind]) -> dict[str, int]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return {text: index for index, (text, kind) in pairs if kind is not TokenKind.UNUSED}


def _added(tokens: Sequence[str], kinds: Sequence[TokenKind]) -> list[dict[str, Any]]:
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return [{"id": index, **_added_entry(text, kind)} for index, (text, kind) in pairs if kind in _SOUGHT]


def _template(tokens: Sequence[str], edges: Mapping[str, int | None]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    first, last = edges.get("first"), edges.get("last")
    if first is not None:
        parts.insert(0, {"SpecialToken": {"id": tokens[first], "type_id": 0}})
    if last is not None:
        parts.append({"SpecialToken": {"id": tokens[last], "type_id": 0}})
    pair = [{kind: {**value, "type_id": 1} for kind, value in part.items()} for part in parts]
    for part in pair:
        if "Sequence" in part:
            part["Sequence"]["id"] = "B"
    named = {tokens[index]: index for index in (first, last) if index is not None}
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, *pair],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in named.items()},
    }


def _tokenizer_json(**parts: Any) -> bytes:  # noqa: ANN401 - JSON
    return _json_bytes({"version": "1.0", "truncation": None, "padding": None, **parts})


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

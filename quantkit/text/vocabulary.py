"""The vocabulary of a checkpoint: every token with its score and kind, and the rules around them.

MiniCPM's `tokenizer.model` (SentencePiece BPE) holds the ordinary pieces; the chat tokens stand after its last piece,
named by `added_tokens.json` and `tokenizer_config.json`. A container with one flat list (GGUF) needs them merged, at
their exact ids, with unused ids filled. `vocabulary_files` takes such a list apart again.

Scores and kinds of added and filled tokens are those of llama.cpp's converter (`conversion/base.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import InconsistentCheckpoint, MalformedFile, UnsupportedModel
from quantkit.files.json_file import parse_json
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.sentencepiece_model import SentencePieceModel, TokenKind, model_bytes, parse_model

MODEL_FILE = "tokenizer.model"
ADDED_FILE = "added_tokens.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
FILES = (MODEL_FILE, ADDED_FILE, CONFIG_FILE)
"""What `vocabulary_files` makes."""

ADDED_SCORE = -1000.0
FILLER_SCORE = -10000.0
WORD_BOUNDARY = "\u2581"  # SentencePiece's visible space
MAX_JSON_BYTES = 1 << 26
MAX_TEMPLATE_BYTES = 1 << 18

_SPECIAL = (TokenKind.CONTROL, TokenKind.USER_DEFINED)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token id of a model, from 0 to vocab_size - 1.

    tokens, scores, kinds: one entry per id; a space inside an ordinary piece is U+2581.
    add_bos, add_eos: what encoding a text adds. add_space_prefix: a space is put before the text.
    chat_template: Jinja source, never rendered here. normalizer: "identity", or the name of a rule that changes text
    before it is split (no flat list can hold it).
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[TokenKind, ...]
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    normalizer: str = "identity"


def has_vocabulary(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint carries a tokenizer at all."""
    return MODEL_FILE in checkpoint.files or "tokenizer.json" in checkpoint.files


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Merge `tokenizer.model`, the added tokens and the tokenizer's config into one list of vocab_size tokens.

    Raises:
        UnsupportedModel: no SentencePiece BPE model.
        MalformedFile: a file that breaks the rules of its format.
        InconsistentCheckpoint: ids outside the vocabulary, or two files that disagree about a token.
    """
    if MODEL_FILE not in checkpoint.files:
        raise UnsupportedModel(
            f"{checkpoint.path}: no {MODEL_FILE}; only SentencePiece tokenizers are supported",
            hint="add the model's tokenizer.model, or remove tokenizer.json to go on with token ids only",
        )
    model = parse_model(checkpoint.files[MODEL_FILE](), MODEL_FILE)
    config = _json(checkpoint, CONFIG_FILE)
    size = checkpoint.spec.vocab_size
    if len(model.pieces) > size:
        raise InconsistentCheckpoint(
            f"{MODEL_FILE} has {len(model.pieces):,} pieces, more than vocab_size {size:,} of config.json"
        )
    fill = size - len(model.pieces)
    tokens = [*model.pieces, *map(_filler, range(len(model.pieces), size))]
    scores = [*model.scores, *[FILLER_SCORE] * fill]
    kinds = [*model.kinds, *[TokenKind.UNUSED] * fill]
    for index, (text, kind) in _added_tokens(_json(checkpoint, ADDED_FILE), config, size).items():
        _check_replaced(model, index, text)
        tokens[index], scores[index] = text, ADDED_SCORE
        kinds[index] = TokenKind.UNKNOWN if index == model.unk_id else kind
    ids = _ids(tokens)
    eos = checkpoint.spec.eos_token_ids
    return Vocabulary(
        tokens=tuple(tokens),
        scores=tuple(scores),
        kinds=tuple(kinds),
        bos_token_id=_named_id(config, "bos_token", ids, default=checkpoint.spec.bos_token_id),
        eos_token_id=_named_id(config, "eos_token", ids, default=eos[0] if eos else None),
        unk_token_id=_named_id(config, "unk_token", ids, default=model.unk_id),
        pad_token_id=_named_id(config, "pad_token", ids, default=checkpoint.spec.pad_token_id),
        add_bos=_flag(config, "add_bos_token", default=True),
        add_eos=_flag(config, "add_eos_token", default=False),
        add_space_prefix=model.add_dummy_prefix,
        chat_template=_chat_template(checkpoint, config),
        normalizer=model.normalizer,
    )


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


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """`FILES` of a Hugging Face folder; `read_vocabulary` makes the same vocabulary of them."""
    added = {
        vocabulary.tokens[index]: index
        for index in range(_piece_count(vocabulary), len(vocabulary.tokens))
        if vocabulary.kinds[index] in _SPECIAL
    }
    return {
        MODEL_FILE: sentencepiece_model(vocabulary),
        ADDED_FILE: _json_bytes(added),
        CONFIG_FILE: _json_bytes(_tokenizer_config(vocabulary)),
    }


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    def name(index: int | None) -> str | None:
        return None if index is None else vocabulary.tokens[index]

    decoder = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": kind is not TokenKind.USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (*_SPECIAL, TokenKind.UNKNOWN)
    }
    config: dict[str, Any] = {
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "added_tokens_decoder": decoder,
        "bos_token": name(vocabulary.bos_token_id),
        "clean_up_tokenization_spaces": False,
        "eos_token": name(vocabulary.eos_token_id),
        "legacy": True,
        "pad_token": name(vocabulary.pad_token_id),
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": name(vocabulary.unk_token_id),
    }
    return config if vocabulary.chat_template is None else {**config, "chat_template": vocabulary.chat_template}


def _filler(index: int) -> str:
    """The text of an id that no token has, as llama.cpp's converter writes it."""
    return f"[PAD{index}]"


def _piece_count(vocabulary: Vocabulary) -> int:
    """Where the ordinary pieces end; what follows was added to, or missing from, `tokenizer.model`."""
    unk = vocabulary.unk_token_id or 0
    for index in range(len(vocabulary.tokens) - 1, unk, -1):
        filler = vocabulary.kinds[index] is TokenKind.UNUSED and vocabulary.tokens[index] == _filler(index)
        if vocabulary.kinds[index] not in _SPECIAL and not filler:
            return index + 1
    return unk + 1


def _added_tokens(added: Mapping[str, Any], config: Mapping[str, Any], size: int) -> dict[int, tuple[str, TokenKind]]:
    """Id to text and kind, from `added_tokens.json` and `added_tokens_decoder`, which must agree."""
    result: dict[int, tuple[str, TokenKind]] = {}
    for text, value in added.items():
        index = _checked_id(value, size, f"{ADDED_FILE}: {text!r}")
        if index in result:
            raise InconsistentCheckpoint(f"{ADDED_FILE}: tokens {result[index][0]!r} and {text!r} share id {index}")
        result[index] = (text, TokenKind.USER_DEFINED)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise MalformedFile(f"{CONFIG_FILE}: added_tokens_decoder must be an object")
    for key, entry in decoder.items():
        where = f"{CONFIG_FILE}: added token {key[:20]!r}"
        index = _checked_id(int(key) if key.isascii() and key.isdigit() and len(key) < 12 else None, size, where)
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(content, str) or not content:
            raise MalformedFile(f"{where} has no content")
        if index in result and result[index][0] != content:
            raise InconsistentCheckpoint(
                f"token {index} is {result[index][0]!r} in {ADDED_FILE}, {content!r} in {CONFIG_FILE}"
            )
        if entry.get("special") is True:
            result[index] = (content, TokenKind.CONTROL)
        else:
            result[index] = (content.replace(WORD_BOUNDARY, " "), TokenKind.USER_DEFINED)
    return result


def _checked_id(index: object, size: int, where: str) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise MalformedFile(f"{where} has no valid id")
    if index >= size:
        raise InconsistentCheckpoint(f"{where} has id {index}; vocab_size is {size}")
    return index


def _check_replaced(model: SentencePieceModel, index: int, text: str) -> None:
    """Refuse to overwrite an ordinary piece by another text; unused and control pieces are there to be renamed."""
    if index >= len(model.pieces) or model.pieces[index] == text:
        return
    if model.kinds[index] in (TokenKind.NORMAL, TokenKind.BYTE):
        raise InconsistentCheckpoint(
            f"added token {text!r} has id {index}, which is piece {model.pieces[index]!r} of {MODEL_FILE}"
        )


def _ids(tokens: list[str]) -> dict[str, int]:
    ids = {text: index for index, text in enumerate(tokens)}
    if len(ids) < len(tokens):
        index, text = next((i, text) for i, text in enumerate(tokens) if ids[text] != i)
        raise InconsistentCheckpoint(f"token {text!r} has two ids, {index} and {ids[text]}")
    return ids


def _named_id(config: Mapping[str, Any], key: str, ids: Mapping[str, int], *, default: int | None) -> int | None:
    """The id of the token that `key` names, as a string or as an object with `content`."""
    value = config.get(key)
    if value is None:
        return default
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise MalformedFile(f"{CONFIG_FILE}: {key} must be a string, is {str(value)[:80]!r}")
    if text not in ids:
        raise InconsistentCheckpoint(f"{CONFIG_FILE}: {key} {text!r} is not in the vocabulary")
    return ids[text]


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise MalformedFile(f"{CONFIG_FILE}: {key} must be true or false, is {str(value)[:80]!r}")
    return default if value is None else value


def _chat_template(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja`, else the config's template; of several named ones the one called "default"."""
    if TEMPLATE_FILE in checkpoint.files:
        try:
            template: Any = checkpoint.files[TEMPLATE_FILE]().decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{TEMPLATE_FILE} is not UTF-8") from None
    else:
        template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is None:
        return None
    if not isinstance(template, str) or len(template.encode("utf-8")) > MAX_TEMPLATE_BYTES:
        raise MalformedFile(f"the chat template must be a string of at most {MAX_TEMPLATE_BYTES:,} bytes")
    return template


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    if name not in checkpoint.files:
        return {}
    data = checkpoint.files[name]()
    if len(data) > MAX_JSON_BYTES:
        raise MalformedFile(f"{name} has {len(data):,} bytes; the limit for such a file is {MAX_JSON_BYTES:,}")
    return parse_json(data, name)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

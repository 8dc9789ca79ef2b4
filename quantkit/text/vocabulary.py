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

from quantkit.errors import InconsistentCheckpoint, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.added_tokens import read_added_tokens
from quantkit.text.sentencepiece_model import SentencePieceModel, TokenKind, model_bytes, parse_model
from quantkit.text.templates import DEFAULT, read_templates
from quantkit.text.tokenizer_config import check_config, flag, further_specials, named_token
from quantkit.text.tokenizer_files import ADDED_FILE, CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Files, read_object
from quantkit.text.tokenizer_json import added_edges, check_same_text, read_tokenizer_json

FILES = (MODEL_FILE, ADDED_FILE, CONFIG_FILE)
"""What `vocabulary_files` makes."""

ADDED_SCORE = -1000.0
FILLER_SCORE = -10000.0

_SPECIAL = (TokenKind.CONTROL, TokenKind.USER_DEFINED)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every token id of a model, from 0 to vocab_size - 1.

    tokens, scores, kinds: one entry per id; a space inside an ordinary piece is U+2581.
    add_bos, add_eos: what encoding a text adds. add_space_prefix: a space is put before the text.
    chat_template: Jinja source, never rendered here; named_templates: further ones, each with its name.
    normalizer: "identity", or the name of a rule that changes text before it is split (no flat list can hold it).
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
    named_templates: tuple[tuple[str, str], ...] = ()
    normalizer: str = "identity"


def has_vocabulary(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint carries a tokenizer at all."""
    return MODEL_FILE in checkpoint.files or TOKENIZER_FILE in checkpoint.files


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
    files, size = checkpoint.files, checkpoint.spec.vocab_size
    model = parse_model(files[MODEL_FILE](), MODEL_FILE)
    config, tokenizer = read_object(files, CONFIG_FILE), read_tokenizer_json(files)
    check_config(config)
    if len(model.pieces) > size:
        raise InconsistentCheckpoint(
            f"{MODEL_FILE} has {len(model.pieces):,} pieces, more than vocab_size {size:,} of config.json"
        )
    fill = size - len(model.pieces)
    tokens = [*model.pieces, *map(_filler, range(len(model.pieces), size))]
    scores = [*model.scores, *[FILLER_SCORE] * fill]
    kinds = [*model.kinds, *[TokenKind.UNUSED] * fill]
    added = read_added_tokens(files, size)
    for index, token in added.items():
        _check_replaced(model, index, token.text)
        tokens[index], scores[index] = token.text, ADDED_SCORE
        kinds[index] = TokenKind.CONTROL if token.special else TokenKind.USER_DEFINED
        if index == model.unk_id:
            kinds[index] = TokenKind.UNKNOWN
    if tokenizer is not None:
        check_same_text(tokenizer, model, added)
    ids = _ids(tokens)
    _check_specials(files, ids, kinds)
    ends, templates = checkpoint.spec.eos_token_ids, read_templates(files)
    bos = _named_id(files, "bos_token", ids, default=checkpoint.spec.bos_token_id)
    eos = _named_id(files, "eos_token", ids, default=ends[0] if ends else None)
    edges = added_edges(tokenizer) if tokenizer is not None else None
    return Vocabulary(
        tokens=tuple(tokens),
        scores=tuple(scores),
        kinds=tuple(kinds),
        bos_token_id=bos,
        eos_token_id=eos,
        unk_token_id=_named_id(files, "unk_token", ids, default=model.unk_id),
        pad_token_id=_named_id(files, "pad_token", ids, default=checkpoint.spec.pad_token_id),
        add_bos=flag(config, "add_bos_token", default=edges is None or edges[0] is not None) and bos is not None,
        add_eos=flag(config, "add_eos_token", default=edges is not None and edges[1] is not None) and eos is not None,
        add_space_prefix=model.add_dummy_prefix,
        chat_template=templates.default,
        named_templates=tuple(templates.named.items()),
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
    template = vocabulary.chat_template
    if vocabulary.named_templates:
        every = [*([(DEFAULT, template)] if template is not None else []), *vocabulary.named_templates]
        return {**config, "chat_template": [{"name": name, "template": text} for name, text in every]}
    return config if template is None else {**config, "chat_template": template}


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


def _named_id(files: Files, key: str, ids: Mapping[str, int], *, default: int | None) -> int | None:
    """The id of the token that `key` names in the tokenizer's config or in the map of special tokens."""
    named = named_token(files, key)
    if named is None:
        return default
    text, file = named
    if text not in ids:
        raise InconsistentCheckpoint(f"{file}: {key} {text!r} is not in the vocabulary")
    return ids[text]


def _check_specials(files: Files, ids: Mapping[str, int], kinds: list[TokenKind]) -> None:
    """Refuse a special token that no file gives an id: transformers would give it one that the model does not know."""
    for text, file in further_specials(files).items():
        index = ids.get(text)
        if index is None:
            raise InconsistentCheckpoint(
                f"{file}: the special token {text!r} has no id in any file",
                hint=f"add it to {ADDED_FILE} with the id that the model was trained with",
            )
        if kinds[index] in (TokenKind.NORMAL, TokenKind.UNUSED):
            kinds[index] = TokenKind.CONTROL


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")

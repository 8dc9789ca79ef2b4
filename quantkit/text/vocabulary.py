"""The vocabulary of a checkpoint: every token with its score and kind, and the rules around them.

MiniCPM's `tokenizer.model` (SentencePiece BPE) holds the ordinary pieces; the chat tokens stand after its last piece,
named by `added_tokens.json`, tokenizer.json and `tokenizer_config.json`. Newer models have tokenizer.json alone. A
container with one flat list (GGUF) needs all tokens merged, at their exact ids, with unused ids filled.
`quantkit.text.tokenizers.writing` takes such a list apart again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.errors import InconsistentCheckpoint, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.added_tokens import kind_of, read_added_tokens
from quantkit.text.sentencepiece_model import WORD_BOUNDARY, SentencePieceModel, TokenKind, parse_model
from quantkit.text.templates import read_templates
from quantkit.text.tokenizer_config import check_config, flag, further_specials, named_token
from quantkit.text.tokenizer_files import ADDED_FILE, CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, Files, read_object
from quantkit.text.tokenizer_json import check_same_text
from quantkit.text.tokenizers.classes import followed_rules
from quantkit.text.tokenizers.parsing import read_tokenizer_json
from quantkit.text.tokenizers.pieces import (
    ADDED_SCORE,
    FILLER_SCORE,
    Pieces,
    filler,
    merge_lines,
    read_pieces,
    translation_of,
)
from quantkit.text.tokenizers.rules import TextRules, is_byte_level
from quantkit.text.tokenizers.translation import SENTENCEPIECE, metaspace_scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Every token id of a model, from 0 to vocab_size - 1.

    tokens, scores, kinds: one entry per id; a space inside an ordinary piece is U+2581.
    add_bos, add_eos: what encoding a text adds. add_space_prefix: a space is put before the text.
    chat_template: Jinja source, never rendered here; named_templates: further ones, each with its name.
    normalizer: "identity", or the name of a rule that changes text before it is split (no flat list can hold it).
    model: how text is split, in GGUF's words: "llama" joins the pieces with the highest score, "gpt2" goes by merges of
    bytes that are written as letters. pre: llama.cpp's name for the rule that cuts a text into words before.
    merges: pairs of pieces, "left right", in the order in which they are tried; of "gpt2" only.
    metaspace: "first" or "always" where a space is put before a text only where there is none ("first": not after a
    special token either); else empty.
    obstacle: why llama.cpp has no tokenizer that splits so, or None. edges: where it splits otherwise, one line each.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[TokenKind, ...]
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    unk_token_id: int | None = None
    pad_token_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool
    chat_template: str | None = None
    named_templates: tuple[tuple[str, str], ...] = ()
    normalizer: str = "identity"
    model: str = SENTENCEPIECE
    pre: str = "default"
    merges: tuple[str, ...] = ()
    metaspace: str = ""
    obstacle: str | None = None
    edges: tuple[str, ...] = ()


def has_vocabulary(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint carries a tokenizer at all."""
    return MODEL_FILE in checkpoint.files or TOKENIZER_FILE in checkpoint.files


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Merge the tokenizer's pieces, the added tokens and the tokenizer's config into one list of vocab_size tokens.

    `tokenizer.model` is read where it lies there, and compared with tokenizer.json; else tokenizer.json alone.

    Raises:
        UnsupportedModel: neither file, or a tokenizer of another kind than BPE.
        MalformedFile: a file that breaks the rules of its format.
        InconsistentCheckpoint: ids outside the vocabulary, or two files that disagree about a token.
    """
    check_config(read_object(checkpoint.files, CONFIG_FILE))
    if MODEL_FILE in checkpoint.files:
        return _sentencepiece_vocabulary(checkpoint)
    pieces = read_pieces(checkpoint.files, checkpoint.spec.vocab_size)
    if pieces is None:
        raise UnsupportedModel(
            f"{checkpoint.path}: neither {TOKENIZER_FILE} nor {MODEL_FILE}; other tokenizers are not supported"
        )
    return _json_vocabulary(checkpoint, pieces)


def _sentencepiece_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    files, size = checkpoint.files, checkpoint.spec.vocab_size
    config = read_object(files, CONFIG_FILE)
    begins, ends = (flag(config, key, default=key == "add_bos_token") for key in ("add_bos_token", "add_eos_token"))
    model = parse_model(files[MODEL_FILE](), MODEL_FILE)
    if len(model.pieces) > size:
        raise InconsistentCheckpoint(
            f"{MODEL_FILE} has {len(model.pieces):,} pieces, more than vocab_size {size:,} of config.json"
        )
    fill = size - len(model.pieces)
    tokens = [*model.pieces, *map(filler, range(len(model.pieces), size))]
    scores = [*model.scores, *[FILLER_SCORE] * fill]
    kinds = [*model.kinds, *[TokenKind.UNUSED] * fill]
    added = read_added_tokens(files, size)
    for index, token in added.items():
        text = token.text if token.special else token.text.replace(WORD_BOUNDARY, " ")
        _check_replaced(model, index, text)
        tokens[index], scores[index], kinds[index] = text, ADDED_SCORE, kind_of(token)
        if index == model.unk_id:
            kinds[index] = TokenKind.UNKNOWN
    tokenizer = read_tokenizer_json(files)
    if tokenizer is not None:
        check_same_text(tokenizer, model, added)
    ids = _ids(tokens)
    _check_specials(files, ids, kinds)
    vocabulary = _with_roles(
        checkpoint,
        Vocabulary(
            tokens=tuple(tokens),
            scores=tuple(scores),
            kinds=tuple(kinds),
            unk_token_id=model.unk_id,
            add_space_prefix=model.add_dummy_prefix,
            normalizer=model.normalizer,
        ),
        ids,
    )
    rules = rules_beside(files)
    if rules is None:
        return replace(
            vocabulary,
            add_bos=begins and vocabulary.bos_token_id is not None,
            add_eos=ends and vocabulary.eos_token_id is not None,
        )
    pieces = read_pieces(files, size)
    return replace(
        vocabulary,
        add_bos=bool(rules.first) and vocabulary.bos_token_id is not None,
        add_eos=bool(rules.last) and vocabulary.eos_token_id is not None,
        metaspace=metaspace_scheme(rules),
        obstacle=_edges_obstacle(rules, vocabulary),
        edges=translation_of(pieces).notes if pieces is not None else (),
    )


def rules_beside(files: Files) -> TextRules | None:
    """The rules of a tokenizer.json beside `tokenizer.model`, where it can be followed; else None."""
    try:
        rules = followed_rules(files)
    except UnsupportedModel:
        return None
    return rules if rules is None or not is_byte_level(rules) else None


def _json_vocabulary(checkpoint: Checkpoint, pieces: Pieces) -> Vocabulary:
    rules, translation = pieces.rules, translation_of(pieces)
    kinds, ids = list(pieces.kinds), _ids(list(pieces.tokens))
    unk = pieces.tokenizer.ids.get(pieces.tokenizer.model.get("unk_token") or "")
    _check_specials(checkpoint.files, ids, kinds)
    vocabulary = _with_roles(
        checkpoint,
        Vocabulary(
            tokens=pieces.tokens,
            scores=pieces.scores,
            kinds=tuple(kinds),
            unk_token_id=unk,
            add_space_prefix=translation.add_space_prefix,
            model=translation.model,
            pre=translation.pre,
            merges=merge_lines(pieces) if pieces.byte_level else (),
            metaspace=translation.metaspace,
            obstacle=translation.obstacle,
            edges=translation.notes,
        ),
        ids,
    )
    unk = vocabulary.unk_token_id
    if unk is not None and translation.model == SENTENCEPIECE:
        kinds[unk] = TokenKind.UNKNOWN
    return replace(
        vocabulary,
        kinds=tuple(kinds),
        add_bos=bool(rules.first) and vocabulary.bos_token_id is not None,
        add_eos=bool(rules.last) and vocabulary.eos_token_id is not None,
        obstacle=vocabulary.obstacle or _edges_obstacle(rules, vocabulary),
    )


def _edges_obstacle(rules: TextRules, vocabulary: Vocabulary) -> str | None:
    """llama.cpp puts the BOS before a text and the EOS after it, or nothing; so does quantkit where none is named."""
    for name, ids, index in (
        ("begins", rules.first, vocabulary.bos_token_id),
        ("ends", rules.last, vocabulary.eos_token_id),
    ):
        if ids and index is not None and ids != (index,):
            told = " ".join(vocabulary.tokens[i] for i in ids)
            return f"it {name} every text with {told[:60]!r}, which is not the token that has that role"
    return None


def _with_roles(checkpoint: Checkpoint, vocabulary: Vocabulary, ids: Mapping[str, int]) -> Vocabulary:
    """`vocabulary` with the tokens that have a role, and the chat templates."""
    files, eos, templates = checkpoint.files, checkpoint.spec.eos_token_ids, read_templates(checkpoint.files)
    return replace(
        vocabulary,
        bos_token_id=_named_id(files, "bos_token", ids, default=checkpoint.spec.bos_token_id),
        eos_token_id=_named_id(files, "eos_token", ids, default=eos[0] if eos else None),
        unk_token_id=_named_id(files, "unk_token", ids, default=vocabulary.unk_token_id),
        pad_token_id=_named_id(files, "pad_token", ids, default=checkpoint.spec.pad_token_id),
        chat_template=templates.default,
        named_templates=tuple(templates.named.items()),
    )


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

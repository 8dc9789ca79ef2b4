"""A folder's tokenizer.json with everything that belongs to it: rules, tokens by id, and what llama.cpp makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from quantkit.errors import InconsistentCheckpoint
from quantkit.text.added_tokens import kind_of, read_added_tokens, sought_tokens
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer_files import (
    ADDED_FILE,
    CONFIG_FILE,
    SPECIALS_FILE,
    TOKENIZER_FILE,
    Files,
)
from quantkit.text.tokenizers.classes import followed_rules
from quantkit.text.tokenizers.library import SoughtToken, TextSplitter
from quantkit.text.tokenizers.parsing import TokenizerJson, read_tokenizer_json
from quantkit.text.tokenizers.rules import TextRules, is_byte_level
from quantkit.text.tokenizers.translation import (
    BYTE_LEVEL,
    BYTE_PIECES,
    SENTENCEPIECE,
    Translation,
    first_ranks,
    merge_pairs,
    translated,
)

ADDED_SCORE = -1000.0
FILLER_SCORE = -10000.0
"""Scores of added and unused tokens in llama.cpp's converter (`conversion/base.py`)."""


def filler(index: int) -> str:
    """The text of an id that no token has, as llama.cpp's converter writes it."""
    return f"[PAD{index}]"


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """tokens, scores, kinds: one per id, 0 to vocab_size - 1. The rest as in the modules that they come from."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[TokenKind, ...]
    rules: TextRules
    sought: tuple[SoughtToken, ...]
    tokenizer: TokenizerJson

    @property
    def byte_level(self) -> bool:
        """Whether the pieces are written in letters that stand for bytes."""
        return is_byte_level(self.rules)

    @property
    def model(self) -> str:
        """llama.cpp's name for such a tokenizer."""
        return BYTE_LEVEL if self.byte_level else SENTENCEPIECE


def read_pieces(files: Files, size: int) -> Pieces | None:
    """What tokenizer.json and the small files beside it say of a model with `size` ids; None without tokenizer.json.

    The last answers are kept: a plan for many targets asks once per target.

    Raises:
        MalformedFile, UnsupportedModel: see `followed_rules`.
        InconsistentCheckpoint: ids outside the vocabulary, two pieces with one id, or files that disagree.
    """
    if TOKENIZER_FILE not in files:
        return None
    names = (TOKENIZER_FILE, CONFIG_FILE, SPECIALS_FILE, ADDED_FILE)
    return _read(tuple((name, files[name]()) for name in names if name in files), size)


@lru_cache(maxsize=2)
def _read(contents: tuple[tuple[str, bytes], ...], size: int) -> Pieces:
    files = {name: _reader(data) for name, data in contents}
    tokenizer, rules = read_tokenizer_json(files), followed_rules(files)
    assert tokenizer is not None
    assert rules is not None
    tokens = _texts(tokenizer.ids, size)
    kinds = [TokenKind.UNUSED if text is None else TokenKind.NORMAL for text in tokens]
    scores = _scores(tokenizer, rules, size)
    for index, text in enumerate(tokens):
        if rules.byte_fallback and text in BYTE_PIECES:
            kinds[index] = TokenKind.BYTE
    added = read_added_tokens(files, size)
    sought = sought_tokens(files, added, tokenizer.ids)
    for index in (*rules.first, *rules.last):
        if index >= size:
            raise InconsistentCheckpoint(f"{TOKENIZER_FILE} adds token {index} to a text; vocab_size is {size}")
    for token in sought:
        _check_same(tokens[token.index], token.text, token.index)
        tokens[token.index], scores[token.index] = token.text, ADDED_SCORE
        kinds[token.index] = kind_of(added[token.index]) if token.index in added else TokenKind.CONTROL
    return Pieces(
        tokens=tuple(filler(index) if text is None else text for index, text in enumerate(tokens)),
        scores=(0.0,) * size if is_byte_level(rules) else tuple(scores),
        kinds=tuple(kinds),
        rules=rules,
        sought=tuple(sought),
        tokenizer=tokenizer,
    )


def _reader(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _texts(ids: Mapping[str, int], size: int) -> list[str | None]:
    tokens: list[str | None] = [None] * size
    for piece, index in ids.items():
        if index >= size:
            raise InconsistentCheckpoint(
                f"{TOKENIZER_FILE}: piece {piece[:40]!r} has id {index}; vocab_size of config.json is {size:,}"
            )
        _check_same(tokens[index], piece, index)
        tokens[index] = piece
    return tokens


def _check_same(known: str | None, text: str, index: int) -> None:
    if known is not None and known != text:
        raise InconsistentCheckpoint(f"{TOKENIZER_FILE}: {known[:40]!r} and {text[:40]!r} share id {index}")


def _scores(tokenizer: TokenizerJson, rules: TextRules, size: int) -> list[float]:
    """The earlier a merge makes a piece, the higher its score; pieces that no merge makes come after all of them."""
    scores = [FILLER_SCORE] * size
    ranks, last = first_ranks(tokenizer), len(tokenizer.merges)
    for piece, index in tokenizer.ids.items():
        apart = piece in BYTE_PIECES and rules.byte_fallback
        scores[index] = 0.0 if apart else -float(ranks.get(index, last + index))
    return scores


@lru_cache(maxsize=2)
def translation_of(pieces: Pieces) -> Translation:
    """What llama.cpp can make of `pieces`; see `translated`."""
    return translated(pieces.rules, pieces.tokenizer, pieces.sought)


@lru_cache(maxsize=2)
def merge_lines(pieces: Pieces) -> tuple[str, ...]:
    """The merges as GGUF has them: "left right"."""
    return tuple(map(" ".join, merge_pairs(pieces.tokenizer)))


@lru_cache(maxsize=2)
def splitter_of(pieces: Pieces) -> TextSplitter:
    """The library's tokenizer for `pieces`; raises as `TextSplitter`."""
    return TextSplitter(pieces.rules, pieces.tokenizer.ids, merge_pairs(pieces.tokenizer), pieces.sought)

"""tokenizer.json beside `tokenizer.model`: whether both split text into the same ids.

transformers reads tokenizer.json, quantkit and llama.cpp split by `tokenizer.model`. Where the two differ, a prompt
gets other ids here than where the model was trained. What gives other pieces other ids is refused; what only touches
spaces at the edges of a text is said in a note. Source: the serialization of the `tokenizers` package, and
`convert_slow_tokenizer.py` of transformers, which makes such a file from a SentencePiece model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from quantkit.errors import InconsistentCheckpoint, MalformedFile, UnsupportedModel
from quantkit.text.added_tokens import AddedToken
from quantkit.text.sentencepiece_model import WORD_BOUNDARY, SentencePieceModel, TokenKind, joined_pairs
from quantkit.text.tokenizer_files import MODEL_FILE, TOKENIZER_FILE
from quantkit.text.tokenizers.parsing import TokenizerJson
from quantkit.text.tokenizers.rules import SPACE_BEFORE, SPACES_MARKED

_HINT = f"if {MODEL_FILE} is the model's own tokenizer, take {TOKENIZER_FILE} out of the folder"
_MERGEABLE = (TokenKind.NORMAL, TokenKind.USER_DEFINED)
_NEUTRAL_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}
"""Settings of a BPE model that SentencePiece does not have, with the values that change nothing."""


def check_same_text(tokenizer: TokenizerJson, model: SentencePieceModel, added: Mapping[int, AddedToken]) -> None:
    """Refuse a tokenizer.json that splits text otherwise than `model` does.

    Raises:
        MalformedFile: a BPE model without a vocabulary.
        UnsupportedModel: rules that SentencePiece's BPE does not have, or another kind of model.
        InconsistentCheckpoint: other pieces, ids or merges.
    """
    _check_settings(tokenizer, model)
    _check_pieces(tokenizer.ids, model, added)
    _check_merges(tokenizer, model)
    if model.normalizer == "identity":  # else `tokenizer.model` has a rule of its own, which is told elsewhere
        _check_text_rules(tokenizer.rules, model)


def _check_settings(tokenizer: TokenizerJson, model: SentencePieceModel) -> None:
    settings = tokenizer.rules.get("model") or {}
    kind = settings.get("type", "BPE")
    if kind == "BPE" and not tokenizer.ids:
        raise MalformedFile(f"{TOKENIZER_FILE}: the model's vocab is not a list of pieces with their ids")
    if kind != "BPE":
        raise UnsupportedModel(
            f"{TOKENIZER_FILE} holds a model of type {str(kind)[:40]!r}, {MODEL_FILE} a SentencePiece BPE", hint=_HINT
        )
    wanted = {**_NEUTRAL_SETTINGS, "byte_fallback": (TokenKind.BYTE in model.kinds,)}
    for key, values in wanted.items():
        if settings.get(key, False if key == "byte_fallback" else None) not in values:
            raise UnsupportedModel(
                f"{TOKENIZER_FILE}: {key} {str(settings.get(key))[:40]!r} is not what {MODEL_FILE} does", hint=_HINT
            )


def _check_pieces(ids: Mapping[str, int], model: SentencePieceModel, added: Mapping[int, AddedToken]) -> None:
    for index, piece in enumerate(model.pieces):
        renamed = index in added and (added[index].text in ids or piece not in ids)
        if ids.get(piece) != index and not renamed:
            found = f"has it at {ids[piece]}" if piece in ids else "lacks it"
            raise InconsistentCheckpoint(
                f"piece {index} of {MODEL_FILE} is {piece!r}; {TOKENIZER_FILE} {found}", hint=_HINT
            )
    pieces = set(model.pieces)
    texts = {token.text: index for index, token in added.items()}
    for piece, index in ids.items():
        if piece not in pieces and texts.get(piece) != index:
            raise InconsistentCheckpoint(
                f"{TOKENIZER_FILE} has a piece {piece!r} with id {index}, which {MODEL_FILE} lacks", hint=_HINT
            )


@lru_cache(maxsize=1)
def _check_merges(tokenizer: TokenizerJson, model: SentencePieceModel) -> None:
    """SentencePiece joins the two neighbours whose whole has the highest score; so must the order of the merges.

    That the last pair agreed is kept, because a plan asks once per target.
    """
    merges = tokenizer.merges
    inside = merges[:, 2] < len(model.pieces)
    scores = np.array(model.scores)[merges[inside, 2]]
    late = np.flatnonzero(np.diff(scores) > 0)
    if not inside.all() or late.size:
        place = int(late[0]) + 1 if late.size else int(np.flatnonzero(~inside)[0])
        whole = next(piece for piece, index in tokenizer.ids.items() if index == merges[place, 2])
        raise InconsistentCheckpoint(
            f"{TOKENIZER_FILE} makes {whole!r} (merge {place}) in another order than {MODEL_FILE}", hint=_HINT
        )
    known = set(map(tuple, merges[:, :2].tolist()))
    for left, right in splits(model.pieces, model.kinds):
        if (left, right) not in known:
            parts = f"{model.pieces[left]!r} and {model.pieces[right]!r}"
            raise InconsistentCheckpoint(f"{MODEL_FILE} joins {parts}; {TOKENIZER_FILE} lacks that merge", hint=_HINT)


def splits(pieces: Sequence[str], kinds: Sequence[TokenKind]) -> Iterator[tuple[int, int]]:
    """Every pair of pieces that together are a third, as ids: what SentencePiece joins."""
    ids = {piece: index for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind in _MERGEABLE}
    return joined_pairs(ids, (piece for piece, index in ids.items() if kinds[index] is TokenKind.NORMAL))


def _check_text_rules(rules: Mapping[str, Any], model: SentencePieceModel) -> None:
    steps = _steps(rules.get("normalizer"), "normalizers")
    cuts = _steps(rules.get("pre_tokenizer"), "pretokenizers")
    for step in (*steps, *cuts):
        if step not in (SPACE_BEFORE, SPACES_MARKED) and not _is_metaspace(step):
            kind = step.get("type") if isinstance(step, Mapping) else step
            raise UnsupportedModel(
                f"{TOKENIZER_FILE} changes or cuts text by the rule {str(kind)[:40]!r}, {MODEL_FILE} does not",
                hint=_HINT,
            )
    prefixes = [_scheme(step) != "never" for step in cuts if _is_metaspace(step)]
    prefixes += [True] if SPACE_BEFORE in steps else []
    replaces = SPACES_MARKED in steps or any(map(_is_metaspace, cuts))
    if sum(prefixes) != int(model.add_dummy_prefix) or not replaces:
        raise UnsupportedModel(
            f"{TOKENIZER_FILE} and {MODEL_FILE} do not agree about spaces and the one before a text", hint=_HINT
        )


def _steps(rule: object, members: str) -> Sequence[Any]:
    """The rules that a `Sequence` is made of; one rule alone; none for null."""
    if rule is None:
        return ()
    if isinstance(rule, Mapping) and rule.get("type") == "Sequence":
        listed = rule.get(members)
        return listed if isinstance(listed, list) else (rule,)
    return (rule,)


def _is_metaspace(step: object) -> bool:
    """A Metaspace that does not cut a text at its spaces, as SentencePiece does not."""
    return (
        isinstance(step, Mapping)
        and step.get("type") == "Metaspace"
        and step.get("replacement") == WORD_BOUNDARY
        and step.get("split", True) is False
    )


def _scheme(step: Mapping[str, Any]) -> str:
    """Where a Metaspace puts a space: "first", "always" or "never" (older files say true or false)."""
    return str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"))

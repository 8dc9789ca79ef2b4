"""Faults of the vocabulary: ids that mean other texts, texts that become other ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.faults.fault import SPEC_TRIALS, Fault, Level
from benchmarks.faults.tokens import TOKENIZER_CONFIG, with_file, with_json
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.sentencepiece_model import SentencePieceModel, TokenKind, model_bytes, parse_model

MODEL_FILE, JSON_FILE, ADDED_FILE = "tokenizer.model", "tokenizer.json", "added_tokens.json"
ROTATED = 1700
DROPPED = "<|fim_suffix|>"


def with_pieces(model: Checkpoint, change: Callable[[SentencePieceModel], SentencePieceModel]) -> Checkpoint:
    """`model` with other pieces in tokenizer.model, and the same texts, ids and order of merges in tokenizer.json."""
    before = parse_model(model.files[MODEL_FILE](), MODEL_FILE)
    after = change(before)
    changed = with_file(model, MODEL_FILE, model_bytes(after))
    ids = {piece: index for index, piece in enumerate(after.pieces)}

    def whole(merge: Any) -> str:
        return "".join(merge if isinstance(merge, list) else merge.split(" "))

    def with_vocabulary(tokenizer: dict[str, Any]) -> dict[str, Any]:
        known = tokenizer["model"]["vocab"]
        vocabulary = {piece: ids.get(piece, index) for piece, index in known.items()}
        merges = sorted(tokenizer["model"]["merges"], key=lambda merge: -after.scores[ids[whole(merge)]])
        return {**tokenizer, "model": {**tokenizer["model"], "vocab": vocabulary, "merges": merges}}

    return with_json(changed, JSON_FILE, with_vocabulary)


def ordinary(pieces: SentencePieceModel) -> list[int]:
    """Ids of the pieces that are learned text."""
    return [index for index, kind in enumerate(pieces.kinds) if kind is TokenKind.NORMAL]


def rotate(pieces: SentencePieceModel) -> SentencePieceModel:
    """The texts of the last 1,700 learned pieces moved on by one id; scores stay with the ids."""
    moved = ordinary(pieces)[-ROTATED:]
    texts = list(pieces.pieces)
    for index, other in zip(moved, [*moved[1:], moved[0]], strict=True):
        texts[other] = pieces.pieces[index]
    return replace(pieces, pieces=tuple(texts))


def swap_two(pieces: SentencePieceModel) -> SentencePieceModel:
    """Two learned pieces change ids, scores and all."""
    one, other = ordinary(pieces)[-300], ordinary(pieces)[-301]
    texts = list(pieces.pieces)
    texts[one], texts[other] = texts[other], texts[one]
    return replace(pieces, pieces=tuple(texts))


def reverse_scores(pieces: SentencePieceModel) -> SentencePieceModel:
    """Merges in the opposite order: other pieces win."""
    chosen, scores = ordinary(pieces), list(pieces.scores)
    for index, score in zip(chosen, [pieces.scores[i] for i in reversed(chosen)], strict=True):
        scores[index] = score
    return replace(pieces, scores=tuple(scores))


def shift_bytes(pieces: SentencePieceModel) -> SentencePieceModel:
    """The token of every byte stands for the next one."""
    chosen, texts = [i for i, kind in enumerate(pieces.kinds) if kind is TokenKind.BYTE], list(pieces.pieces)
    for index, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        texts[other] = pieces.pieces[index]
    return replace(pieces, pieces=tuple(texts))


def without_prefix(pieces: SentencePieceModel) -> SentencePieceModel:
    """No space before a text."""
    return replace(pieces, add_dummy_prefix=not pieces.add_dummy_prefix)


def drop_added(model: Checkpoint) -> Checkpoint:
    """One special token is text like any other."""

    def without_entry(config: dict[str, Any]) -> dict[str, Any]:
        decoder = {key: value for key, value in config["added_tokens_decoder"].items() if value["content"] != DROPPED}
        names = [name for name in config.get("additional_special_tokens", []) if name != DROPPED]
        return {**config, "added_tokens_decoder": decoder, "additional_special_tokens": names}

    def without_token(tokenizer: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer, "added_tokens": [t for t in tokenizer["added_tokens"] if t["content"] != DROPPED]}

    changed = with_json(model, ADDED_FILE, lambda added: {k: v for k, v in added.items() if k != DROPPED})
    changed = with_json(changed, TOKENIZER_CONFIG, without_entry)
    return with_json(changed, JSON_FILE, without_token)


def swap_added(model: Checkpoint) -> Checkpoint:
    """Two special tokens change ids."""
    one, other = "<|im_end|>", "<|im_start|>"
    exchange = {one: other, other: one}

    def in_decoder(config: dict[str, Any]) -> dict[str, Any]:
        decoder = {
            key: {**value, "content": exchange.get(value["content"], value["content"])}
            for key, value in config["added_tokens_decoder"].items()
        }
        return {**config, "added_tokens_decoder": decoder}

    def in_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
        tokens = [{**t, "content": exchange.get(t["content"], t["content"])} for t in tokenizer["added_tokens"]]
        return {**tokenizer, "added_tokens": tokens}

    changed = with_json(model, ADDED_FILE, lambda added: {exchange.get(k, k): v for k, v in added.items()})
    changed = with_json(changed, TOKENIZER_CONFIG, in_decoder)
    return with_json(changed, JSON_FILE, in_tokenizer)


def shuffle_merges(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Merges of tokenizer.json in the opposite order."""
    return {**tokenizer, "model": {**tokenizer["model"], "merges": tokenizer["model"]["merges"][::-1]}}


def rotate_json(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The learned texts of tokenizer.json moved on by one id, tokenizer.model as it was."""
    known = list(tokenizer["model"]["vocab"].items())
    kept, moved = known[:-ROTATED], known[-ROTATED:]
    ids = [index for _, index in moved]
    turned = zip((text for text, _ in moved), [*ids[1:], ids[0]], strict=True)
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": {**dict(kept), **dict(turned)}}}


def without_bos(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json puts no BOS before a text."""
    return {**tokenizer, "post_processor": None}


def in_json(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Checkpoint], Checkpoint]:
    """A change of tokenizer.json alone, which GGUF does not hold."""
    return lambda model: with_json(model, JSON_FILE, change)


CHANGES: Mapping[str, Callable[[Checkpoint], Checkpoint]] = {
    "1,700 vocabulary entries rotated": partial(with_pieces, change=rotate),
    "two pieces swapped": partial(with_pieces, change=swap_two),
    "scores reversed": partial(with_pieces, change=reverse_scores),
    "byte tokens shifted by one": partial(with_pieces, change=shift_bytes),
    "no space before a text": partial(with_pieces, change=without_prefix),
    "a special token dropped": drop_added,
    "two special tokens swapped": swap_added,
}
JSON_CHANGES: Mapping[str, Callable[[Checkpoint], Checkpoint]] = {
    "merges of tokenizer.json reversed": in_json(shuffle_merges),
    "tokenizer.json alone rotated": in_json(rotate_json),
    "tokenizer.json without BOS": in_json(without_bos),
}

FAULTS = (
    *(
        Fault(name=name, kind="tokenizer", level=Level.SOURCE, change=change, trials=SPEC_TRIALS)
        for name, change in CHANGES.items()
    ),
    *(
        Fault(
            name=name,
            kind="tokenizer",
            level=Level.SOURCE,
            change=change,
            trials=SPEC_TRIALS,
            containers=("folder",),
        )
        for name, change in JSON_CHANGES.items()
    ),
)

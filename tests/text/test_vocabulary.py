"""The vocabulary: merged from three files, taken apart again, and what is refused on the way."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from quantkit.errors import InconsistentCheckpoint, MalformedFile, QuantkitError, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.sentencepiece_model import SentencePieceModel, TokenKind, model_bytes, parse_model
from quantkit.text.tokenizers.writing import sentencepiece_model, vocabulary_files
from quantkit.text.vocabulary import Vocabulary, has_vocabulary, read_vocabulary
from tests.support.memory import memory_checkpoint, tiny_config

NAMES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json")
TEXTS = [
    "def f(x):\n    return x + 1\n", "  two  spaces ", "\t\ttabs", "", " ", "中文字符", "😀", "e\u0301", "\x00\x01\x7f",
    "<s></s><unk>", "<|im_end|>", "<0x0A>", "[PAD5]", "\u2581a\u2581", "a" * 200, "1234567890", "ﬁ É ß",
]  # fmt: skip


def checkpoint_with(files: Mapping[str, bytes], **config: Any) -> Checkpoint:
    return memory_checkpoint(tiny_config(vocab_size=2048, eos_token_id=[2, 2040], **config), files=files)


@pytest.fixture
def files(golden_model: Path) -> dict[str, bytes]:
    return {name: (golden_model / name).read_bytes() for name in NAMES}


@pytest.fixture
def vocabulary(files: dict[str, bytes]) -> Vocabulary:
    return read_vocabulary(checkpoint_with(files))


def edited(data: bytes, **changes: Any) -> bytes:
    """A JSON object with `changes`; None removes the key."""
    value = {**json.loads(data), **changes}
    return json.dumps({key: item for key, item in value.items() if item is not None}).encode()


def test_pieces_keep_their_ids_scores_and_kinds(files: dict[str, bytes], vocabulary: Vocabulary) -> None:
    """The sentencepiece package reads the same model."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    for index in range(3, len(pieces)):
        assert vocabulary.tokens[index] == pieces.id_to_piece(index)
        assert vocabulary.scores[index] == pieces.get_score(index)
        assert (vocabulary.kinds[index] is TokenKind.BYTE) == pieces.is_byte(index)
    assert vocabulary.kinds[:3] == (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL)


def test_specials_stand_at_their_ids(vocabulary: Vocabulary) -> None:
    assert len(vocabulary.tokens) == 2048
    assert vocabulary.tokens[2040:2042] == ("<|im_end|>", "<|im_start|>")
    assert set(vocabulary.kinds[2040:]) == {TokenKind.CONTROL}
    assert set(vocabulary.scores[2040:]) == {-1000.0}
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.unk_token_id) == (1, 2040, 0)
    assert (vocabulary.add_bos, vocabulary.add_eos, vocabulary.add_space_prefix) == (True, False, True)
    assert vocabulary.chat_template is not None
    assert "<|im_start|>assistant" in vocabulary.chat_template


def test_ids_without_a_token_are_filled(files: dict[str, bytes]) -> None:
    larger = read_vocabulary(memory_checkpoint(tiny_config(vocab_size=2050), files=files))
    assert larger.tokens[2048:] == ("[PAD2048]", "[PAD2049]")
    assert set(larger.kinds[2048:]) == {TokenKind.UNUSED}
    assert set(larger.scores[2048:]) == {-10000.0}


def test_specials_are_found_in_either_file(files: dict[str, bytes], vocabulary: Vocabulary) -> None:
    only_config = {name: data for name, data in files.items() if name != "added_tokens.json"}
    assert read_vocabulary(checkpoint_with(only_config)) == vocabulary
    decoder = edited(files["tokenizer_config.json"], added_tokens_decoder=None)
    only_added = read_vocabulary(checkpoint_with({**files, "tokenizer_config.json": decoder}))
    assert only_added.tokens == vocabulary.tokens
    assert set(only_added.kinds[2040:]) == {TokenKind.USER_DEFINED}


def test_without_a_config_the_model_speaks_for_itself(files: dict[str, bytes]) -> None:
    found = read_vocabulary(checkpoint_with({"tokenizer.model": files["tokenizer.model"]}))
    assert (found.bos_token_id, found.eos_token_id, found.unk_token_id, found.pad_token_id) == (1, 2, 0, None)
    assert (found.add_bos, found.add_eos, found.chat_template) == (True, False, None)


def test_a_template_file_comes_before_the_config(files: dict[str, bytes]) -> None:
    found = read_vocabulary(checkpoint_with({**files, "chat_template.jinja": b"{{ 1 }}"}))
    assert found.chat_template == "{{ 1 }}"
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    config = edited(files["tokenizer_config.json"], chat_template=named)
    assert read_vocabulary(checkpoint_with({**files, "tokenizer_config.json": config})).chat_template == "b"


def test_taking_a_vocabulary_apart_loses_nothing(vocabulary: Vocabulary) -> None:
    assert read_vocabulary(checkpoint_with(vocabulary_files(vocabulary))) == vocabulary
    other = replace(vocabulary, pad_token_id=2, add_bos=False, add_eos=True, add_space_prefix=False, chat_template=None)
    assert read_vocabulary(checkpoint_with(vocabulary_files(other))) == other


def test_a_rebuilt_model_encodes_as_the_original(files: dict[str, bytes], vocabulary: Vocabulary) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(vocabulary))
    assert len(rebuilt) == len(original)
    for text in TEXTS:
        assert rebuilt.encode(text) == original.encode(text), text
        assert rebuilt.decode(original.encode(text)) == original.decode(original.encode(text)), text
    assert (rebuilt.bos_id(), rebuilt.eos_id(), rebuilt.unk_id()) == (1, 2, 0)


def test_a_model_is_read_as_it_was_written() -> None:
    model = SentencePieceModel(
        pieces=("<unk>", "<s>", "a" * 300, "\u2581b", "<0x41>", "c"),
        scores=(0.0, 0.0, -1.5, float(np.float32(-0.1)), 0.0, -3.0),
        kinds=(
            TokenKind.UNKNOWN,
            TokenKind.CONTROL,
            TokenKind.NORMAL,
            TokenKind.NORMAL,
            TokenKind.BYTE,
            TokenKind.USER_DEFINED,
        ),
        unk_id=0,
        bos_id=1,
        add_dummy_prefix=False,
        normalizer="identity",
    )
    assert parse_model(model_bytes(model), "m") == model


def test_whether_there_is_a_tokenizer(files: dict[str, bytes]) -> None:
    assert has_vocabulary(checkpoint_with(files))
    assert has_vocabulary(checkpoint_with({"tokenizer.json": b"{}"}))
    assert not has_vocabulary(checkpoint_with({"tokenizer_config.json": b"{}"}))


def added(**tokens: int) -> bytes:
    return json.dumps(tokens).encode()


def decoder(**entries: Any) -> bytes:
    return json.dumps({"added_tokens_decoder": entries}).encode()


REFUSED_FILES: dict[str, tuple[dict[str, bytes], type[QuantkitError], str]] = {
    "two tokens share an id": ({"added_tokens.json": added(a=2040, b=2040)}, InconsistentCheckpoint, "share id 2040"),
    "an id beyond the vocabulary": ({"added_tokens.json": added(a=4294967295)}, InconsistentCheckpoint, "vocab_size"),
    "a negative id": ({"added_tokens.json": added(a=-1)}, MalformedFile, "no valid id"),
    "an id that is true": ({"added_tokens.json": b'{"a": true}'}, MalformedFile, "no valid id"),
    "an ordinary piece is overwritten": ({"added_tokens.json": added(a=1000)}, InconsistentCheckpoint, "piece"),
    "a token has two ids": ({"added_tokens.json": json.dumps({"<s>": 2041}).encode()}, InconsistentCheckpoint, "two"),
    "the files disagree": (
        {"added_tokens.json": added(a=2040), "tokenizer_config.json": decoder(**{"2040": {"content": "b"}})},
        InconsistentCheckpoint,
        "'a'.*'b'",
    ),
    "an id that is no number": ({"tokenizer_config.json": decoder(x={"content": "b"})}, MalformedFile, "no valid id"),
    "a huge id": ({"tokenizer_config.json": decoder(**{"9" * 99: {"content": "b"}})}, MalformedFile, "no valid id"),
    "no content": ({"tokenizer_config.json": decoder(**{"2040": {}})}, MalformedFile, "no content"),
    "a list of added tokens": ({"tokenizer_config.json": b'{"added_tokens_decoder": [1]}'}, MalformedFile, "object"),
    "an unknown eos": ({"tokenizer_config.json": b'{"eos_token": "<x>"}'}, InconsistentCheckpoint, "'<x>'"),
    "an eos that is a number": ({"tokenizer_config.json": b'{"eos_token": 2}'}, MalformedFile, "eos_token"),
    "a flag that is a number": ({"tokenizer_config.json": b'{"add_bos_token": 1}'}, MalformedFile, "add_bos_token"),
    "a template that is a number": ({"tokenizer_config.json": b'{"chat_template": 1}'}, MalformedFile, "template"),
    "a template too long": ({"chat_template.jinja": b"x" * (1 << 19)}, MalformedFile, "template"),
    "a template that is not UTF-8": ({"chat_template.jinja": b"\xff"}, MalformedFile, "UTF-8"),
    "JSON that is not": ({"added_tokens.json": b"{"}, MalformedFile, "added_tokens.json"),
    "a key twice": ({"added_tokens.json": b'{"a": 2040, "a": 2041}'}, MalformedFile, "twice"),
    "no SentencePiece": ({"tokenizer.model": b"", "tokenizer.json": b"{}"}, MalformedFile, "tokenizer.model"),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_bad_files_are_refused(case: str, files: dict[str, bytes]) -> None:
    changes, cause, message = REFUSED_FILES[case]
    if "tokenizer_config.json" not in changes:
        changes = {**changes, "tokenizer_config.json": b"{}"}
    with pytest.raises(cause, match=message):
        read_vocabulary(checkpoint_with({"tokenizer.model": files["tokenizer.model"], **changes}))


def test_a_tokenizer_json_without_pieces_is_refused() -> None:
    with pytest.raises(MalformedFile, match="not a list of pieces"):
        read_vocabulary(checkpoint_with({"tokenizer.json": b"{}"}))


def test_more_pieces_than_the_model_has_tokens_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(InconsistentCheckpoint, match="vocab_size"):
        read_vocabulary(memory_checkpoint(tiny_config(vocab_size=2000), files=files))


def field(number: int, payload: bytes) -> bytes:
    return bytes([number * 8 + 2, len(payload)]) + payload


UNK = field(1, field(1, b"<unk>") + b"\x18\x02")
TRAINER = field(2, b"\x18\x02")
REFUSED_MODELS: dict[str, tuple[bytes, type[QuantkitError], str]] = {
    "empty": (b"", MalformedFile, "no pieces"),
    "text": (b"#version: 0.2\n", MalformedFile, "m"),
    "a length past the end": (UNK + b"\x0a\x7f", MalformedFile, "left"),
    "a length of 2^63": (UNK + b"\x0a" + b"\x80" * 9 + b"\x01", MalformedFile, "left"),
    "a number that does not end": (UNK + b"\x0a" + b"\xff" * 12, MalformedFile, "does not end"),
    "field 0": (UNK + b"\x00\x00", MalformedFile, "field 0"),
    "a group": (UNK + b"\x0b", MalformedFile, "wire type 3"),
    "a piece without text": (UNK + field(1, b"\x15\0\0\0\0"), MalformedFile, "no text"),
    "a piece that is not UTF-8": (UNK + field(1, field(1, b"\xff")), MalformedFile, "UTF-8"),
    "a piece that is a number": (UNK + b"\x08\x01", MalformedFile, "message"),
    "a score of two bytes": (UNK + field(1, field(1, b"a") + field(2, b"ab")), MalformedFile, "score"),
    "a score that is NaN": (
        UNK + field(1, field(1, b"a") + b"\x15" + struct.pack("<f", float("nan"))) + TRAINER,
        MalformedFile,
        "score",
    ),
    "a kind of 7": (UNK + field(1, field(1, b"a") + b"\x18\x07"), MalformedFile, "type 7"),
    "two unknown pieces": (UNK + UNK + TRAINER, MalformedFile, "2 unknown|are both"),
    "two trainer specs": (UNK + TRAINER + TRAINER, MalformedFile, "twice"),
    "a unigram model": (UNK + field(2, b"\x18\x01"), UnsupportedModel, "BPE"),
    "a model that does not say": (UNK, UnsupportedModel, "BPE"),
    "spaces after words": (UNK + field(2, b"\x18\x02\xc0\x01\x01"), UnsupportedModel, "spaces"),
    "spaces as they are": (UNK + TRAINER + field(3, b"\x28\x00"), UnsupportedModel, "spaces"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_bad_models_are_refused(case: str) -> None:
    data, cause, message = REFUSED_MODELS[case]
    with pytest.raises(cause, match=message):
        parse_model(data, "m")


def test_every_truncation_is_refused_or_a_shorter_model(files: dict[str, bytes]) -> None:
    data = files["tokenizer.model"]
    for size in range(0, len(data), 997):
        with pytest.raises(QuantkitError):
            parse_model(data[:size], "m")


def test_a_normalization_rule_is_reported_by_name() -> None:
    rule = field(3, field(1, b"nmt_nfkc") + field(2, b"map"))
    assert parse_model(UNK + TRAINER + rule, "m").normalizer == "nmt_nfkc"
    assert parse_model(UNK + TRAINER + field(3, field(1, b"identity") + b"\x20\x00"), "m").normalizer == "identity"

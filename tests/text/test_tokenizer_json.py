"""tokenizer.json beside tokenizer.model: what differs in pieces is refused, what differs at the edges is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as ReferenceTokenizer

from quantkit.errors import InconsistentCheckpoint, MalformedFile, QuantkitError, UnsupportedModel
from quantkit.text.sentencepiece_model import model_bytes, parse_model
from quantkit.text.tokenizer import open_tokenizer
from quantkit.text.vocabulary import read_vocabulary
from tests.support.strings import STRINGS
from tests.support.tokenizer_folders import Files, changed, golden_files, only_tokenizer_json, opened, written

Edit = Callable[[dict[str, Any]], object]
BOS = {"SpecialToken": {"id": "<s>", "type_id": 0}}
EOS = {"SpecialToken": {"id": "</s>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def edited(edit: Edit, files: Files | None = None) -> Files:
    return changed(files or golden_files(), "tokenizer.json", edit)


def normalizers(*rules: Any) -> Edit:
    return lambda value: value.update(normalizer={"type": "Sequence", "normalizers": list(rules)})


def metaspace(**settings: Any) -> Edit:
    rule = {"type": "Metaspace", "replacement": "▁", **settings}
    return lambda value: value.update(normalizer=None, pre_tokenizer=rule)


def template(*parts: Any) -> Edit:
    tokens = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in (("<s>", 1), ("</s>", 2))}
    rule = {"type": "TemplateProcessing", "single": list(parts), "pair": list(parts), "special_tokens": tokens}
    return lambda value: value.update(post_processor=rule)


def swap_pieces(value: dict[str, Any]) -> None:
    vocab = value["model"]["vocab"]
    first, second = list(vocab)[1500:1502]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def rename_piece(value: dict[str, Any]) -> None:
    model = value["model"]
    last = max(model["vocab"], key=model["vocab"].get)
    model["vocab"]["qqqqq"] = model["vocab"].pop(last)
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != last and last not in pair]


def swap_merges(value: dict[str, Any]) -> None:
    merges = value["model"]["merges"]
    merges[10], merges[2000] = merges[2000], merges[10]


REFUSED: dict[str, tuple[Edit, type[QuantkitError], str]] = {
    "a unigram model": (
        lambda v: v.update(model={"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}),
        UnsupportedModel,
        "Unigram",
    ),
    "a WordPiece model": (lambda v: v["model"].update(type="WordPiece"), UnsupportedModel, "WordPiece"),
    "two pieces swapped": (swap_pieces, InconsistentCheckpoint, "piece 15.. of tokenizer.model"),
    "a piece of another text": (rename_piece, InconsistentCheckpoint, "piece 2039 of tokenizer.model"),
    "a piece more": (lambda v: v["model"]["vocab"].update(zzzz=2047), InconsistentCheckpoint, "'zzzz' with id 2047"),
    "a piece less": (lambda v: v["model"]["vocab"].pop("<0x41>"), InconsistentCheckpoint, "lacks it"),
    "two merges swapped": (swap_merges, InconsistentCheckpoint, "in another order"),
    "a merge less": (lambda v: v["model"]["merges"].pop(100), InconsistentCheckpoint, "lacks that merge"),
    "no merges": (lambda v: v["model"].update(merges=[]), InconsistentCheckpoint, "lacks that merge"),
    "a merge of nothing": (lambda v: v["model"]["merges"].append(["q", "☃"]), MalformedFile, "☃"),
    "merges that are numbers": (lambda v: v["model"].update(merges=[1]), MalformedFile, "not a merge"),
    "no fallback to bytes": (lambda v: v["model"].update(byte_fallback=False), UnsupportedModel, "byte_fallback"),
    "dropout": (lambda v: v["model"].update(dropout=0.1), UnsupportedModel, "dropout"),
    "whole words first": (lambda v: v["model"].update(ignore_merges=True), UnsupportedModel, "ignore_merges"),
    "an end of words": (lambda v: v["model"].update(end_of_word_suffix="@@"), UnsupportedModel, "end_of_word_suffix"),
    "lower case": (normalizers({"type": "Lowercase"}, PREPEND, REPLACE), UnsupportedModel, "Lowercase"),
    "compatibility forms": (normalizers(PREPEND, REPLACE, {"type": "NFKC"}), UnsupportedModel, "NFKC"),
    "accents stripped": (normalizers(PREPEND, REPLACE, {"type": "StripAccents"}), UnsupportedModel, "StripAccents"),
    "another replacement": (
        normalizers(PREPEND, REPLACE, {**REPLACE, "pattern": {"String": "a"}}),
        UnsupportedModel,
        "Replace",
    ),
    "no space before a text": (normalizers(REPLACE), UnsupportedModel, "spaces"),
    "spaces kept": (normalizers(PREPEND), UnsupportedModel, "spaces"),
    "digits cut apart": (
        lambda v: v.update(pre_tokenizer={"type": "Digits", "individual_digits": True}),
        UnsupportedModel,
        "Digits",
    ),
    "bytes as letters": (lambda v: v.update(pre_tokenizer={"type": "ByteLevel"}), UnsupportedModel, "ByteLevel"),
    "cut at spaces": (metaspace(prepend_scheme="always", split=True), UnsupportedModel, "Metaspace"),
    "Metaspace without a first space": (metaspace(prepend_scheme="never", split=False), UnsupportedModel, "spaces"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_other_pieces_is_refused_by_name(case: str) -> None:
    edit, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message) as caught:
        read_vocabulary(opened(edited(edit)))
    assert caught.type is MalformedFile or "tokenizer.json" in str(caught.value.hint)
    assert "\n" not in str(caught.value)


SAID: dict[str, tuple[Edit, str]] = {
    "an end token added": (template(BOS, TEXT, EOS), "add_eos_token False is not followed: tokenizer.json adds one"),
    "no first token": (template(TEXT), "add_bos_token True is not followed: tokenizer.json adds none"),
    "no post-processor": (lambda v: v.update(post_processor=None), "add_bos_token True is not followed"),
    "another first token": (template(EOS, TEXT), "bos_token is '<s>', but tokenizer.json adds '</s>'"),
    "two first tokens": (template(BOS, BOS, TEXT), "bos_token is '<s>', but tokenizer.json adds '<s> <s>'"),
    "tokens around a text": (
        lambda v: v.update(post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}),
        "ends every text with '</s>'",
    ),
    "another post-processor": (
        lambda v: v.update(post_processor={"type": "Other"}),
        "the rule 'Other', which is not supported; text is split by tokenizer.model",
    ),
    "truncation": (lambda v: v.update(truncation={"max_length": 8}), "truncation"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_differs_at_the_edges_of_a_text_is_said(case: str) -> None:
    edit, message = SAID[case]
    checkpoint = opened(edited(edit))
    assert any(message in note for note in checkpoint.notes), checkpoint.notes
    assert read_vocabulary(checkpoint).tokens == read_vocabulary(opened(golden_files())).tokens


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({"prepend_scheme": "first"}, "first"),
        ({"prepend_scheme": "always"}, "always"),
        ({"add_prefix_space": True}, "always"),
    ],
)
def test_where_metaspace_puts_a_space_is_followed(settings: dict[str, Any], scheme: str, tmp_path: Path) -> None:
    files = edited(metaspace(split=False, **settings))
    tokenizer = open_tokenizer(opened(files))
    assert tokenizer.vocabulary.metaspace == scheme
    reference = ReferenceTokenizer.from_file(str(written(files, tmp_path) / "tokenizer.json"))
    for text in STRINGS:
        assert tokenizer.encode(text) == reference.encode(text).ids, text


SILENT: dict[str, Edit] = {
    "merges as strings": lambda v: v["model"].update(merges=[" ".join(pair) for pair in v["model"]["merges"]]),
    "no type": lambda v: v["model"].pop("type"),
    "a processor of offsets": lambda v: v.update(
        post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, v["post_processor"]]}
    ),
    "another decoder": lambda v: v.update(decoder=None),
    "padding": lambda v: v.update(padding=None),
    "added tokens in the vocabulary, too": lambda v: v["model"]["vocab"].update({"<|im_end|>": 2040}),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_changes_nothing_is_read_in_silence(case: str) -> None:
    checkpoint = opened(edited(SILENT[case]))
    assert checkpoint.notes == ()
    assert read_vocabulary(checkpoint) == read_vocabulary(opened(golden_files()))


def test_a_model_without_a_space_before_a_text_agrees_with_such_a_tokenizer_json(tmp_path: Path) -> None:
    files = edited(normalizers(REPLACE), only_tokenizer_json())
    model = parse_model(files["tokenizer.model"], "m")
    bare = model_bytes(
        type(model)(**{name: getattr(model, name) for name in model.__slots__} | {"add_dummy_prefix": False})
    )
    files["tokenizer.model"] = bare
    tokenizer = open_tokenizer(opened(files))
    reference = ReferenceTokenizer.from_file(str(written(files, tmp_path) / "tokenizer.json"))
    for text in STRINGS:
        assert tokenizer.encode(text) == reference.encode(text).ids, text


@pytest.mark.parametrize("adds", [(True, False), (False, False), (False, True), (True, True)])
def test_the_post_processor_speaks_where_the_config_is_silent(adds: tuple[bool, bool]) -> None:
    parts = [*([BOS] if adds[0] else []), TEXT, *([EOS] if adds[1] else [])]
    checkpoint = opened(edited(template(*parts), only_tokenizer_json()))
    vocabulary = read_vocabulary(checkpoint)
    assert (vocabulary.add_bos, vocabulary.add_eos) == adds
    assert any("ends every text" in note for note in checkpoint.notes) is adds[1]


def test_another_kind_of_tokenizer_does_not_keep_weights_from_being_read() -> None:
    files = edited(lambda v: v.update(model={"type": "Unigram", "vocab": [["<unk>", 0.0]]}))
    del files["tokenizer.model"]
    assert opened(files).spec.vocab_size == 2048
    with pytest.raises(UnsupportedModel, match="Unigram"):
        read_vocabulary(opened(files))

"""Rules of a tokenizer.json: read strictly, refused by name, and never a hazard."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from quantkit.errors import InconsistentCheckpoint, MalformedFile, QuantkitError, UnsupportedModel
from quantkit.text.tokenizer import find_tokenizer, open_tokenizer
from quantkit.text.tokenizers.library import TextSplitter
from quantkit.text.tokenizers.rules import TextRules
from quantkit.text.vocabulary import read_vocabulary
from tests.support.tokenizer_folders import Files, changed
from tests.support.tokenizer_kinds import EDGES, EXACT, checkpoint_of, named

Edit = Callable[[dict[str, Any]], object]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "  "}


def normalizer(rule: Any) -> Edit:
    return lambda value: value.update(normalizer=rule)


def cut(rule: Any) -> Edit:
    return lambda value: value.update(pre_tokenizer=rule)


def ending(rule: Any) -> Edit:
    return lambda value: value.update(post_processor=rule)


def nested(depth: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"type": "Sequence", "normalizers": []}
    for _ in range(depth):
        rule = {"type": "Sequence", "normalizers": [rule, rule]}
    return rule


REFUSED: dict[str, tuple[Edit, type[QuantkitError], str]] = {
    "a unigram model": (lambda v: v["model"].update(type="Unigram"), UnsupportedModel, "'Unigram'"),
    "a WordPiece model": (lambda v: v["model"].update(type="WordPiece"), UnsupportedModel, "'WordPiece'"),
    "dropout": (lambda v: v["model"].update(dropout=0.5), UnsupportedModel, "dropout"),
    "an end of words": (lambda v: v["model"].update(end_of_word_suffix="</w>"), UnsupportedModel, "end_of_word_suffix"),
    "an unknown token that is none": (lambda v: v["model"].update(unk_token="?!?"), MalformedFile, "unk_token"),
    "a flag that is text": (lambda v: v["model"].update(byte_fallback="no"), MalformedFile, "byte_fallback"),
    "a table of characters": (normalizer({"type": "Precompiled"}), UnsupportedModel, "'Precompiled'"),
    "a normalizer that is text": (normalizer("NFC"), MalformedFile, "not a rule"),
    "a text that grows": (
        normalizer({"type": "Sequence", "normalizers": [SPACES] * 8}),
        UnsupportedModel,
        "256 times as long",
    ),
    "a replacement that is long": (normalizer({**SPACES, "content": "x" * 999}), MalformedFile, "content of Replace"),
    "a replacement of nothing": (normalizer({**SPACES, "pattern": {"String": ""}}), MalformedFile, "not text"),
    "rules without end": (normalizer(nested(14)), MalformedFile, "nested deeper"),
    "many rules": (
        normalizer({"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}),
        MalformedFile,
        "at most 16",
    ),
    "an expression without end": (
        cut({"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}),
        UnsupportedModel,
        "for ever",
    ),
    "an expression that is none": (
        cut({"type": "Split", "pattern": {"Regex": "a{3,1}[z-a]"}, "behavior": "Isolated", "invert": False}),
        UnsupportedModel,
        "tokenizers library refuses",
    ),
    "a behavior of its own": (
        cut({"type": "Split", "pattern": {"String": "a"}, "behavior": "x", "invert": False}),
        MalformedFile,
        "behavior",
    ),
    "a cut of its own": (cut({"type": "Own"}), UnsupportedModel, "'Own'"),
    "a replacement of two letters": (
        cut({"type": "Metaspace", "replacement": "ab", "prepend_scheme": "first"}),
        MalformedFile,
        "one character",
    ),
    "an end of its own": (ending({"type": "Own"}), UnsupportedModel, "'Own'"),
    "two ends": (
        ending(
            {
                "type": "Sequence",
                "processors": [{"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}] * 2,
            }
        ),
        UnsupportedModel,
        "more than one post-processor",
    ),
    "an end token beyond the vocabulary": (
        ending({"type": "RobertaProcessing", "sep": ["</s>", 9999], "cls": ["<s>", 1]}),
        InconsistentCheckpoint,
        "token 9999",
    ),
    "a template without a text": (
        ending({"type": "TemplateProcessing", "single": [], "special_tokens": {}}),
        UnsupportedModel,
        "keep a text once",
    ),
    "a template with an unknown token": (
        ending({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "?"}}], "special_tokens": {}}),
        MalformedFile,
        "has no ids",
    ),
    "two pieces with one id": (
        lambda v: v["model"]["vocab"].update(zz=7),
        InconsistentCheckpoint,
        "share id 7",
    ),
    "an id beyond the vocabulary": (
        lambda v: v["model"]["vocab"].update(zz=100_000),
        InconsistentCheckpoint,
        "'zz' has id 100000",
    ),
    "an added token that leaves a gap": (
        lambda v: v["added_tokens"].append({**v["added_tokens"][-1], "id": 850, "content": "<|gap|>"}),
        InconsistentCheckpoint,
        "'<.gap.>' has id 850, which does not follow",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(case: str) -> None:
    edit, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message) as refusal:
        open_tokenizer(checkpoint_of(changed(named("gpt-2"), "tokenizer.json", edit)))
    assert len(str(refusal.value)) < 300
    assert "\n" not in str(refusal.value)


def test_a_kind_that_is_not_read_is_a_reason_to_go_on_with_token_ids() -> None:
    files = changed(named("gpt-2"), "tokenizer.json", lambda v: v["model"].update(type="WordPiece"))
    checkpoint = checkpoint_of(files)
    assert any("no text can be encoded" in note and "WordPiece" in note for note in checkpoint.notes)
    found = find_tokenizer(checkpoint)
    assert isinstance(found, str)
    assert "WordPiece" in found


def test_a_panic_of_the_library_is_an_error_of_ours() -> None:
    pattern = {"Regex": "(a|a)*$"}  # as no reader of ours lets it through
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    rules = TextRules((), (split,), None, False, False, False, (), ())
    splitter = TextSplitter(rules, {"a": 0}, [], ())
    with pytest.raises(UnsupportedModel, match="cannot split this text"):
        splitter.encode("a" * 60 + "b")


def test_the_library_is_asked_for_no_padding_and_no_truncation() -> None:
    def edit(value: dict[str, Any]) -> None:
        value["truncation"] = {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
        value["padding"] = {"strategy": {"Fixed": 10**15}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}

    tokenizer = open_tokenizer(checkpoint_of(named("gpt-2", edit)))
    plain = open_tokenizer(checkpoint_of(named("gpt-2")))
    assert tokenizer.encode("one two three four") == plain.encode("one two three four")


VALUES = (None, True, -1, 2**31, 10**30, 1.5, "", "▁", "x" * 99, [], {}, {"type": "Sequence"}, {"Regex": "(a+)+$"})


def mutant(draw: random.Random, value: Any) -> Any:
    """`value` with one thing in it changed, taken away or doubled."""
    target, key = value, draw.choice([key for key in value if key != "version"])
    while isinstance(target[key], (dict, list)) and target[key] and draw.random() < 0.8:
        target = target[key]
        key = draw.choice(list(target) if isinstance(target, dict) else range(len(target)))
    change = draw.randrange(4)
    if change == 0:
        del target[key]
    elif change == 1 and isinstance(target, list):
        target.append(target[key])
    else:
        target[key] = draw.choice(VALUES)
    return value


@pytest.mark.parametrize("kind", ["byte-level minicpm5", "SentencePiece", "Metaspace first"])
def test_mutations_end_in_a_tokenizer_or_in_an_error_of_ours(kind: str) -> None:
    files: Files = {**EXACT, **{name: make for name, (make, _) in EDGES.items()}}[kind]()
    draw, read = random.Random(0), 0
    for _ in range(120):
        name = draw.choice(["tokenizer.json"] * 4 + ["tokenizer_config.json"])
        data = json.dumps(mutant(draw, json.loads(files[name]))).encode()
        try:
            tokenizer = open_tokenizer(checkpoint_of({**files, name: data}, vocab_size=2048))
            tokenizer.decode(tokenizer.encode("def f(x):\n    return '你好' <|im_end|>"))
            read_vocabulary(checkpoint_of({**files, name: data}, vocab_size=2048))
            read += 1
        except QuantkitError as error:
            assert len(str(error)) < 600
    assert 5 < read < 115

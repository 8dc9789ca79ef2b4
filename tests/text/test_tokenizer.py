"""Text to ids and back, against the `tokenizers` package on the files of the golden model."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as ReferenceTokenizer

from quantkit.errors import BadOption, MalformedFile, MissingDependency, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.text.chat_template import render
from quantkit.text.tokenizer import StreamDecoder, Tokenizer, open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config

IM_END, IM_START = 2040, 2041

TEXTS = [
    "",
    " ",
    "def f(x):\n    return x\n",
    " leading space",
    "   three",
    "trailing   ",
    "\n\n\ttabs\r\n",
    "你好，世界。量子力学",
    "日本語 and English 混ざる",
    "🙂👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff",
    "a\x00b\x07\x1b[31m",
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|>",
    "<s> inside</s> and <unk> too",
    "<|im_startx|> <|im_end <|fim_prefix|>def<|fim_suffix|> x<|fim_middle|>",
    "▁ visible space ▁▁",
    "<0x41> looks like a byte",
    "x" * 500,
]


def checkpoint_of(folder: Path, **files: bytes) -> Checkpoint:
    config = tiny_config(vocab_size=2048, eos_token_id=[2, IM_END])
    carried = {path.name: path.read_bytes() for path in folder.glob("*token*")}
    return memory_checkpoint(config, files=carried | files)


@pytest.fixture(scope="module")
def tokenizer(golden_model: Path) -> Tokenizer:
    return open_tokenizer(checkpoint_of(golden_model))


@pytest.fixture(scope="module")
def reference(golden_model: Path) -> ReferenceTokenizer:
    return ReferenceTokenizer.from_file(str(golden_model / "tokenizer.json"))


def random_texts(count: int) -> list[str]:
    draw = random.Random(0)
    parts = [*TEXTS, " ", "\n", "for ", "self.", "中", "é", "<|im_end|>", "</s>", "0123", "𝔘"]
    return ["".join(draw.choices(parts, k=draw.randint(1, 6))) for _ in range(count)]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_reference(tokenizer: Tokenizer, reference: ReferenceTokenizer, text: str):
    assert tokenizer.encode(text) == reference.encode(text).ids


def test_ids_of_random_mixtures_are_those_of_the_reference(tokenizer: Tokenizer, reference: ReferenceTokenizer):
    for text in random_texts(300):
        assert tokenizer.encode(text) == reference.encode(text).ids, text


def test_decoding_inverts_encoding(tokenizer: Tokenizer):
    for text in TEXTS + random_texts(300):
        if "▁" not in text:  # SentencePiece's own space: cannot be told from a space afterwards
            assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


def test_the_longest_special_token_wins(golden_model: Path):
    added = b'{"<|a|>": 2040, "<|a|><|b|>": 2041, "<|b|>": 2042}'
    files = {"tokenizer.model": (golden_model / "tokenizer.model").read_bytes(), "added_tokens.json": added}
    tokenizer = open_tokenizer(memory_checkpoint(tiny_config(vocab_size=2048), files=files))
    assert tokenizer.encode("<|a|><|b|><|a|>", add_bos=False) == [2041, 2040]


def test_bos_is_added_unless_told_otherwise(tokenizer: Tokenizer, golden_model: Path):
    assert tokenizer.encode("hi") == [1, *tokenizer.encode("hi", add_bos=False)]
    config = (
        (golden_model / "tokenizer_config.json").read_text().replace('"add_bos_token": true', '"add_bos_token": false')
    )
    without = open_tokenizer(checkpoint_of(golden_model, **{"tokenizer_config.json": config.encode()}))
    assert without.encode("hi") == tokenizer.encode("hi", add_bos=False)


def test_specials_can_be_left_out_of_the_text(tokenizer: Tokenizer):
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert tokenizer.decode(ids) == "<s><|im_start|>user\nhi<|im_end|>"
    assert tokenizer.decode(ids, specials=False) == "user\nhi"


def test_a_stream_gives_a_character_when_its_last_byte_is_there(tokenizer: Tokenizer):
    ids = tokenizer.encode("a 你b", add_bos=False)
    decoder = StreamDecoder(tokenizer, [1])
    pieces = [decoder.push(token) for token in ids]
    assert "".join(pieces) + decoder.finish() == "a 你b"
    assert all("\ufffd" not in piece for piece in pieces)
    assert "" in pieces  # the first bytes of 你


def test_a_stream_that_stops_inside_a_character_ends_with_a_replacement(tokenizer: Tokenizer):
    ids = tokenizer.encode("你", add_bos=False)
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(token) for token in ids[:-1]][-1] == ""
    assert decoder.finish() == "\ufffd"


def test_a_continued_segment_keeps_its_space_and_a_new_one_loses_it(tokenizer: Tokenizer):
    prompt, whole = tokenizer.encode("hello"), tokenizer.encode("hello world")
    continuation = whole[len(prompt) :]
    decoder = StreamDecoder(tokenizer, prompt)
    assert "".join(map(decoder.push, continuation)) == " world"
    fresh = StreamDecoder(tokenizer, [*prompt, IM_END])
    assert "".join(map(fresh.push, continuation)) == "world"


def test_ids_outside_the_vocabulary_and_halves_of_surrogates_are_refused(tokenizer: Tokenizer):
    with pytest.raises(BadOption, match="token 2048 is not in the vocabulary of 2048"):
        tokenizer.decode([2048])
    with pytest.raises(BadOption, match="token -1"):
        tokenizer.decode([-1])
    with pytest.raises(BadOption, match="not valid Unicode"):
        tokenizer.encode("a\udc80b")


def test_a_chat_is_rendered_as_the_model_knows_it(tokenizer: Tokenizer):
    turns = [{"role": "user", "content": "你好 {{ 7 * 7 }}"}, {"role": "assistant", "content": "Hi."}]
    expected = "<|im_start|>user\n你好 {{ 7 * 7 }}<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    assert tokenizer.chat(turns, add_generation_prompt=False) == expected
    assert tokenizer.chat(turns) == expected + "<|im_start|>assistant\n"


def test_the_bos_of_a_template_is_not_doubled(golden_model: Path):
    template = b"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tokenizer = open_tokenizer(checkpoint_of(golden_model, **{"chat_template.jinja": template}))
    text = tokenizer.chat([{"role": "user", "content": "hi"}])
    assert text == "hi<|im_end|>"
    assert tokenizer.encode(text).count(1) == 1


def test_a_model_without_a_template_cannot_chat(golden_model: Path):
    tokenizer = open_tokenizer(checkpoint_of(golden_model, **{"tokenizer_config.json": b"{}"}))
    assert not tokenizer.has_chat_template
    with pytest.raises(BadOption, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role", "unexpected end of template"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[3].role }}", "no element 3"),
        ("{% include 'x' %}", "no loader"),
        ("{{ 'x' * 10**10 }}", "needs more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than"),
        ("x" * 300_000, "300,000 characters"),
    ],
)  # fmt: skip
def test_a_bad_template_fails_in_one_line(template: str, message: str):
    with pytest.raises(MalformedFile, match=message) as failure:
        render(template, [{"messages": []}])
    assert "\n" not in str(failure.value)


def test_formatting_reads_no_attributes():
    assert render("{{ '[{0.__class__}]'.format(1) }}", [{}]) == ["[]"]


def test_a_template_that_does_not_end_is_stopped():
    with pytest.raises(MalformedFile, match=r"took more than 1\S* s of processor time"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", [{}])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, golden_model: Path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingDependency, match="sentencepiece") as failure:
        open_tokenizer(checkpoint_of(golden_model))
    assert failure.value.hint == "pip install 'quantkit[text]'"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="jinja2"):
        render("x", [{}])


def test_a_checkpoint_without_a_tokenizer_is_refused():
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.model"):
        open_tokenizer(memory_checkpoint(tiny_config()))

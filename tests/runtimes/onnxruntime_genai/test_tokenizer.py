"""What onnxruntime-genai's own tokenizer does to a text: stated in `session.py`, and held here.

A release that reads texts as the model does makes a test fail; then `session.py`, the remark of its kernels and the
note of `verify` have to say so.
"""

from __future__ import annotations

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.protocols import ExportOptions
from quantkit.verification.prompts import Prompt
from quantkit.verification.steps.predictions import tokenizer_notes

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.engine("onnxruntime-genai")

SAME = [
    "hello",
    "hello world",
    " hello",
    "a\nb\n\nc",
    "你好，世界",
    "héé 😀",
    "<|im_start|>user\nhi<|im_end|>",
    "x  ",
    "\t\tx",
]
OTHER = ["a  b", "a    b", "if x:\n    y = 1\n        z", "def main(\n        a,\n        b)"]


@pytest.fixture(scope="module")
def folder(golden_model, tmp_path_factory):
    model = registry.open_checkpoint(golden_model)
    plan = registry.exporter("onnx").prepare(model, ExportOptions())
    return publish(plan, tmp_path_factory.mktemp("genai") / "model", inputs=model.inputs).path


@pytest.fixture(scope="module")
def session(folder):
    with registry.runtime("onnxruntime-genai").open(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def own(folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text, special=False: tokenizer.encode(text, add_special_tokens=special).ids


@pytest.mark.parametrize("text", SAME)
def test_texts_without_runs_of_spaces_are_read_as_the_model_does(text, session, own):
    assert session.own_token_ids(text, add_special=False) == own(text)


@pytest.mark.parametrize("text", OTHER)
def test_runs_of_spaces_are_split_otherwise(text, session, own):
    assert session.own_token_ids(text, add_special=False) != own(text)


def test_the_last_of_two_spaces_goes_to_the_word(session, own):
    """`▁▁b` is `▁` and `▁b` to it, `▁▁` and `b` to the model."""
    assert session.own_token_ids("a  b", add_special=False)[-1] == own("a b")[-1]
    assert own("a  b")[-1] != own("a b")[-1]


def test_it_puts_no_beginning_first_unless_it_is_told_to(session, own):
    assert session.own_token_ids("hello", add_special=False) == own("hello")
    assert session.own_token_ids("hello", add_special=True) == own("hello", special=True) == [1, *own("hello")]


def test_verify_says_so_and_does_not_fail_for_it(session, own):
    prompts = [
        Prompt(name, text, tuple(own(text, special=True))) for name, text in (("plain", SAME[1]), ("code", OTHER[2]))
    ]
    (note,) = tokenizer_notes(session, "onnxruntime-genai", prompts)
    assert "was given ids" in note
    assert "1 of 2 prompts as other tokens: code" in note

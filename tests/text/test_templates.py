"""Chat templates: which one a chat uses, as transformers decides it, and that no other one is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import InconsistentCheckpoint, MalformedFile
from quantkit.protocols import ExportOptions
from quantkit.text.templates import TEMPLATE_FOLDER, read_templates
from quantkit.text.tokenizers.writing import vocabulary_files
from quantkit.text.vocabulary import read_vocabulary
from tests.support.tokenizer_folders import Files, config_with, golden_files, opened, written

A, B, C = "{{ 'a' }}", "{{ 'b' }}", "{{ 'c' }}"
TOOL = TEMPLATE_FOLDER + "tool_use.jinja"
BARE = config_with(golden_files(), chat_template=None)


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def folder(*, config: Any = None, jinja: str | None = None, old: Any = None, **further: str) -> Files:
    """The golden tokenizer with these templates and no other."""
    files = config_with(BARE, chat_template=config) if config is not None else dict(BARE)
    files |= {"chat_template.jinja": jinja.encode()} if jinja is not None else {}
    files |= {"chat_template.json": json.dumps({"chat_template": old}).encode()} if old is not None else {}
    return files | {f"{TEMPLATE_FOLDER}{name}.jinja": text.encode() for name, text in further.items()}


CASES: dict[str, tuple[Files, str | None, dict[str, str], str]] = {
    # files, the default, the others, a word of the note ("" for none)
    "the config": (folder(config=A), A, {}, ""),
    "a file": (folder(jinja=A), A, {}, ""),
    "the file of old": (folder(old=A), A, {}, ""),
    "named ones in the config": (folder(config=named(default=A, rag=B)), A, {"rag": B}, ""),
    "named ones in the file of old": (folder(old=named(default=A, rag=B)), A, {"rag": B}, ""),
    "named ones, none of them the default": (
        folder(config=named(chat=A, rag=B)),
        None,
        {"chat": A, "rag": B},
        "'chat'",
    ),
    "a sub folder beside the file": (folder(jinja=A, tool_use=B), A, {"tool_use": B}, ""),
    "a sub folder beside the config": (folder(config=A, tool_use=B), A, {"tool_use": B}, ""),
    "a sub folder alone": (folder(rag=B), None, {"rag": B}, "'rag'"),
    "the same text twice": (folder(config=A, jinja=A), A, {}, ""),
    "the file against the config": (folder(config=A, jinja=B), B, {}, "tokenizer_config.json"),
    "the config against the file of old": (folder(config=A, old=B), A, {}, "chat_template.json"),
    "the file against the file of old": (folder(jinja=A, old=B), A, {}, "chat_template.json"),
    "the file against named ones": (folder(config=named(default=A, rag=B), jinja=A), A, {}, "'rag'"),
    "all of them": (folder(config=A, jinja=B, old=C, rag=A), B, {"rag": A}, "chat_template.json"),
    "none": (folder(), None, {}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_every_template_is_used_carried_or_said(case: str) -> None:
    files, default, others, word = CASES[case]
    checkpoint = opened(files)
    vocabulary = read_vocabulary(checkpoint)
    assert (vocabulary.chat_template, dict(vocabulary.named_templates)) == (default, others)
    assert any(word in note for note in checkpoint.notes) if word else checkpoint.notes == ()
    assert not any("/" in name for name in checkpoint.files)


@pytest.mark.parametrize("case", [case for case in CASES if "of old" not in case])
def test_transformers_chooses_the_same_and_keeps_as_many_in_what_is_written(case: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - a second to import

    files, default, others, _ = CASES[case]
    (tmp_path / "source" / TEMPLATE_FOLDER).mkdir(parents=True)
    there = PreTrainedTokenizerFast.from_pretrained(written(files, tmp_path / "source"), local_files_only=True)
    carried = {name: read() for name, read in opened(files).files.items()}
    here = PreTrainedTokenizerFast.from_pretrained(written(carried, tmp_path / "out"), local_files_only=True)
    every = {"default": default, **others} if default is not None else others
    assert here.chat_template == (default if not others else every)
    if case != "a sub folder beside the config":  # the source then has no default any more
        assert there.chat_template == here.chat_template


@pytest.mark.parametrize("case", CASES)
def test_gguf_holds_every_template_under_the_keys_of_gguf_py(case: str, tmp_path: Path) -> None:
    files, default, others, _ = CASES[case]
    path = tmp_path / "m.gguf"
    publish(registry.exporter("gguf").prepare(opened(files), ExportOptions(type="f16")), path)
    keys = {key: field for key, field in gguf.GGUFReader(path).fields.items() if "chat_template" in key}
    expected = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    expected |= {"tokenizer.chat_template": default} if default is not None else {}
    assert {k: f.contents() for k, f in keys.items() if not k.endswith("chat_templates")} == expected
    if others:
        assert keys["tokenizer.chat_templates"].contents() == list(others)
    back = read_vocabulary(registry.open_checkpoint(path))
    assert (back.chat_template, dict(back.named_templates)) == (default, others)


def test_a_vocabulary_with_named_templates_is_taken_apart_without_loss() -> None:
    vocabulary = read_vocabulary(opened(folder(config=named(default=A, rag=B))))
    assert read_vocabulary(opened(vocabulary_files(vocabulary))) == vocabulary


def test_two_names_that_make_one_key_are_refused() -> None:
    with pytest.raises(InconsistentCheckpoint, match="a-b, a_b"):
        registry.exporter("gguf").prepare(opened(folder(config=named(**{"a-b": A, "a_b": B}))), ExportOptions())


REFUSED: dict[str, Files] = {
    "a number": folder(config=1),
    "a list of strings": folder(config=[A]),
    "a name twice": folder(config=[*named(rag=A), *named(rag=B)]),
    "no text": folder(config=[{"name": "default"}]),
    "too long": folder(jinja="x" * (1 << 19)),
    "not UTF-8": folder() | {TOOL: b"\xff"},
    "the default twice": folder(jinja=A, default=B),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_template_is_refused(case: str) -> None:
    files = {name: (lambda data=data: data) for name, data in REFUSED[case].items()}
    with pytest.raises(MalformedFile, match="template"):
        read_templates(files)

"""Keys of the tokenizer in a GGUF file of another writer: followed, or said by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit import registry
from quantkit.exporters.gguf.container.header import entry, string_array
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.vocabulary import END_TEXTS
from quantkit.text.vocabulary import read_vocabulary
from tests.exporters.gguf.test_reading import stranger, tokenizer_of

EXPORTER = registry.exporter("gguf")


@pytest.mark.parametrize("key", ["remove_extra_whitespaces", "clean_spaces", "escape_whitespaces"])
def test_a_rule_that_is_not_followed_is_said(key: str, tmp_path: Path) -> None:
    extra = [*tokenizer_of(), entry(f"tokenizer.ggml.{key}", ValueType.BOOL, True)]
    notes = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=extra)).notes
    assert notes == (f"keys of the tokenizer are not followed: tokenizer.ggml.{key}",)


@pytest.mark.parametrize("key", ["fim_pre_token_id", "mask_token_id"])
def test_other_tokens_are_read_in_silence(key: str, tmp_path: Path) -> None:
    extra = [*tokenizer_of(), entry(f"tokenizer.ggml.{key}", ValueType.UINT32, 3)]
    assert EXPORTER.read(stranger(tmp_path / "m.gguf", extra=extra)).notes == ()


def test_the_ends_of_text_of_turn_and_of_message_all_end_a_text(tmp_path: Path) -> None:
    ids = {"eot_token_id": 7, "eom_token_id": 9}
    extra = [entry(f"tokenizer.ggml.{key}", ValueType.UINT32, index) for key, index in ids.items()]
    back = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=[*tokenizer_of(), *extra]))
    assert {7, 9} <= set(back.spec.eos_token_ids)


def test_named_templates_are_read(tmp_path: Path) -> None:
    extra = [entry("tokenizer.chat_template.rag", ValueType.STRING, "{{ 1 }}")]
    back = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=[*tokenizer_of(), *extra]))
    assert dict(read_vocabulary(back).named_templates) == {"rag": "{{ 1 }}"}


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.rag"])
def test_a_template_that_reads_pythons_internals_is_said(key: str, tmp_path: Path) -> None:
    """It is read all the same: GG45 of the list of malformed files."""
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    extra = [*tokenizer_of(), entry(key, ValueType.STRING, text)]
    (note,) = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=extra)).notes
    assert "reads Python's internals ('__class__')" in note
    assert ("'rag'" in note) == key.endswith("rag")


def test_tokens_at_which_llama_cpp_stops_by_their_text_end_a_text_here(tmp_path: Path) -> None:
    """Files of others often name the end of text alone, and not that of a turn."""
    texts = [f"t{i}" for i in range(40)]
    for place, text in enumerate(END_TEXTS):
        texts[10 + place] = text
    entries = [
        string_array("tokenizer.ggml.tokens", texts) if b"tokenizer.ggml.tokens" in item else item
        for item in tokenizer_of()
    ]
    eos = entry("tokenizer.ggml.eos_token_id", ValueType.UINT32, 2)
    back = EXPORTER.read(stranger(tmp_path / "m.gguf", extra=[*entries, eos]))
    assert back.spec.eos_token_ids == (2, *range(10, 10 + len(END_TEXTS)))

"""Keys of tokenizer_config.json: followed, harmless, or said by name; what changes every text is refused."""

from __future__ import annotations

from typing import Any

import pytest

from quantkit.errors import MalformedFile, QuantkitError, UnsupportedModel
from quantkit.text.vocabulary import read_vocabulary
from tests.support.tokenizer_folders import config_with, golden_files, opened

SAID: dict[str, Any] = {
    "split_special_tokens": True,
    "clean_up_tokenization_spaces": True,
    "sp_model_kwargs": {"enable_sampling": True, "alpha": 0.1},
    "use_default_system_prompt": True,
    "add_eos_token": True,
    "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]},
    "tokenizer_class": "GPT2Tokenizer",
    "do_lower_case": True,
    "remove_space": True,
    "x-private-rule": 1,
}


@pytest.mark.parametrize("key", SAID)
def test_a_key_that_is_not_followed_is_said_by_name(key: str) -> None:
    notes = opened(config_with(golden_files(), **{key: SAID[key]})).notes
    assert any(key in note and "tokenizer_config.json" in note for note in notes), notes
    assert all(note.isprintable() and len(note) < 240 for note in notes)


HARMLESS: dict[str, Any] = {
    "legacy": True,
    "add_prefix_space": True,
    "split_special_tokens": False,
    "model_max_length": 32768,
    "padding_side": "left",
    "truncation_side": "left",
    "model_input_names": ["input_ids"],
    "cls_token": "<s>",
    "name_or_path": "/x",
    "backend": "tokenizers",
    "is_local": True,
    "tokenizer_class": "TokenizersBackend",
    "extra_special_tokens": {},
    "spaces_between_special_tokens": True,
}


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_that_changes_no_id_is_read_in_silence(key: str) -> None:
    checkpoint = opened(config_with(golden_files(), **{key: HARMLESS[key]}))
    assert checkpoint.notes == ()
    assert read_vocabulary(checkpoint) == read_vocabulary(opened(golden_files()))


REFUSED: dict[str, tuple[dict[str, Any], type[QuantkitError], str]] = {
    "lower case": ({"do_lower_case": True}, UnsupportedModel, "do_lower_case"),
    "a flag that is text": ({"add_bos_token": "yes"}, MalformedFile, "add_bos_token"),
    "a token that is a list": ({"bos_token": ["<s>"]}, MalformedFile, "bos_token"),
    "special tokens that are numbers": ({"additional_special_tokens": [1]}, MalformedFile, "additional_special_tokens"),
    "special tokens that are a number": ({"extra_special_tokens": 7}, MalformedFile, "extra_special_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused(case: str) -> None:
    keys, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message):
        read_vocabulary(opened(config_with(golden_files(), **keys)))


@pytest.mark.parametrize("key", ["legacy", "add_prefix_space"])
def test_rules_for_spaces_are_said_where_no_tokenizer_json_is_followed(key: str) -> None:
    files = config_with(golden_files("tokenizer.model", "tokenizer_config.json"), **{key: False})
    assert any(f"tokenizer_config.json: {key} False" in note for note in opened(files).notes)


def test_whether_a_text_begins_with_bos_is_said_by_tokenizer_json_else_by_the_config() -> None:
    for value in (True, False):
        files = config_with(golden_files(), add_bos_token=value)
        checkpoint = opened(files)
        assert read_vocabulary(checkpoint).add_bos
        assert any("add_bos_token False is not followed" in note for note in checkpoint.notes) is not value
        del files["tokenizer.json"]
        assert read_vocabulary(opened(files)).add_bos is value

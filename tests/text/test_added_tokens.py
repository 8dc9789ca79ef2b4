"""Added tokens, whichever of the files names them: the ids that `tokenizers`, transformers and llama.cpp give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as ReferenceTokenizer

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import InconsistentCheckpoint, MalformedFile, QuantkitError
from quantkit.protocols import ExportOptions
from quantkit.text.sentencepiece_model import TokenKind
from quantkit.text.tokenizer import open_tokenizer
from quantkit.text.vocabulary import read_vocabulary
from tests.support.strings import STRINGS
from tests.support.tokenizer_folders import (
    IM_END,
    IM_START,
    Files,
    changed,
    config_with,
    golden_files,
    only_tokenizer_json,
    opened,
    written,
)

CHAT = "<|im_start|>user\nhi<|im_end|>\n"
GLUED = [f"a{token}b {token} c{token}" for token in ("<|im_end|>", "<|im_start|>", "<|tool_call|>", "</s>", "<unk>")]


def added(files: Files, **token: Any) -> Files:
    """`files` with one token more in tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return changed(files, "tokenizer.json", lambda value: value["added_tokens"].append({**flags, **token}))


def renamed(index: int, text: str) -> Files:
    """The golden files, but tokenizer.json calls token `index` otherwise."""

    def edit(value: dict[str, Any]) -> None:
        next(token for token in value["added_tokens"] if token["id"] == index)["content"] = text

    return changed(golden_files(), "tokenizer.json", edit)


RIGHT: dict[str, Files] = {
    "all three files": golden_files(),
    "tokenizer.json only": only_tokenizer_json(),
    "tokenizer.json, and a list of names without ids": only_tokenizer_json(
        additional_special_tokens=["<|im_end|>", "<|im_start|>"]
    ),
    "tokenizer.json, and the list of transformers 5": only_tokenizer_json(extra_special_tokens=["<|im_end|>"]),
    "tokenizer.json, and no config": golden_files("tokenizer.model", "tokenizer.json"),
    "the config names only some": config_with(
        golden_files(), added_tokens_decoder={"2040": {"content": "<|im_end|>", "special": True}}
    ),
    "one that is not special": added(
        changed(only_tokenizer_json(), "tokenizer.json", lambda value: value["added_tokens"].pop()),
        id=2047,
        content="<think>",
        special=False,
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_ids_are_those_of_tokenizers_and_of_transformers(case: str, tmp_path: Path) -> None:
    folder = written(RIGHT[case], tmp_path)
    tokenizer = open_tokenizer(opened(RIGHT[case]))
    reference = ReferenceTokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - a second to import

    other = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in (*STRINGS, *GLUED, CHAT, "<think>x</think>"):
        assert tokenizer.encode(text) == reference.encode(text).ids == other(text)["input_ids"], text


@pytest.mark.parametrize("case", RIGHT)
def test_every_file_gives_the_same_vocabulary(case: str) -> None:
    vocabulary = read_vocabulary(opened(RIGHT[case]))
    assert vocabulary.tokens[IM_END : IM_START + 1] == ("<|im_end|>", "<|im_start|>")
    assert set(vocabulary.kinds[IM_END : IM_START + 1]) == {TokenKind.CONTROL}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (True, False)


@pytest.mark.engine("llama-cpp")
def test_llama_cpp_finds_the_tokens_of_tokenizer_json(tmp_path: Path) -> None:
    checkpoint = opened(only_tokenizer_json())
    publish(registry.exporter("gguf").prepare(checkpoint, ExportOptions(type="f16")), tmp_path / "m.gguf")
    tokenizer = open_tokenizer(checkpoint)
    with registry.runtime("llama-cpp").open(tmp_path / "m.gguf") as session:
        for text in (*STRINGS[::2], *GLUED, CHAT):
            if "\x00" not in text:
                assert session.tokenize(text, add_special=True, parse_special=True) == tokenizer.encode(text), text


def test_a_turn_of_a_chat_is_nine_ids() -> None:
    ids = open_tokenizer(opened(only_tokenizer_json())).encode(CHAT)
    assert (len(ids), ids.count(IM_START), ids.count(IM_END)) == (9, 1, 1)


REFUSED: dict[str, tuple[Files, type[QuantkitError], str]] = {
    "another text at an id": (renamed(2041, "<|user|>"), InconsistentCheckpoint, "2041 is '<|im_start|>' in"),
    "another id for a text": (
        changed(golden_files(), "tokenizer.json", lambda v: v["added_tokens"][3].update(id=2047)),
        InconsistentCheckpoint,
        "2047|<.im_end.>",
    ),
    "two texts at an id": (
        added(only_tokenizer_json(), id=2040, content="<x>"),
        InconsistentCheckpoint,
        "tokenizer.json: tokens '<.im_end.>' and '<x>' share id 2040",
    ),
    "two ids for a text": (
        changed(only_tokenizer_json(), "tokenizer.json", lambda v: v["added_tokens"][4].update(content="<|im_end|>")),
        InconsistentCheckpoint,
        "has two ids, 2040",
    ),
    "beyond the vocabulary": (added(only_tokenizer_json(), id=2048, content="<x>"), InconsistentCheckpoint, "2048"),
    "over an ordinary piece": (added(only_tokenizer_json(), id=1000, content="<x>"), InconsistentCheckpoint, "1000"),
    "no id": (added(only_tokenizer_json(), content="<x>"), MalformedFile, "no valid id"),
    "no text": (added(only_tokenizer_json(), id=2047, content=""), MalformedFile, "no content"),
    "not a list": (
        changed(only_tokenizer_json(), "tokenizer.json", lambda v: v.update(added_tokens={"a": 1})),
        MalformedFile,
        "must be a list",
    ),
    "a special token that no file gives an id": (
        only_tokenizer_json(extra_special_tokens=["<|new|>"]),
        InconsistentCheckpoint,
        "'<.new.>' has no id",
    ),
    "an end token that no file gives an id": (
        only_tokenizer_json(eos_token="<|new|>"),
        InconsistentCheckpoint,
        "eos_token '<.new.>' is not in the vocabulary",
    ),
    "a special token in the map alone": (
        {
            **only_tokenizer_json(),
            "special_tokens_map.json": json.dumps({"additional_special_tokens": ["<n>"]}).encode(),
        },
        InconsistentCheckpoint,
        "special_tokens_map.json: the special token '<n>'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_disagree_are_refused(case: str) -> None:
    files, cause, message = REFUSED[case]
    with pytest.raises(cause, match=message):
        read_vocabulary(opened(files))


@pytest.mark.parametrize(
    "case",
    [
        "another text at an id",
        "another id for a text",
        "two texts at an id",
        "two ids for a text",
        "beyond the vocabulary",
    ],
)
def test_weights_can_be_read_beside_files_that_disagree_and_it_is_said(case: str) -> None:
    notes = opened(REFUSED[case][0]).notes
    assert any("no text can be encoded" in note for note in notes), notes


@pytest.mark.parametrize("rule", ["lstrip", "rstrip", "single_word", "normalized"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_rules_of_a_token_that_llama_cpp_does_not_follow_are_said(rule: str, file: str) -> None:
    token = {"content": "<|fim_suffix|>", "special": False, rule: True}
    files = changed(only_tokenizer_json(), "tokenizer.json", lambda value: value["added_tokens"][-1].update(token))
    if file == "tokenizer_config.json":
        files = config_with(golden_files("tokenizer.model", file), added_tokens_decoder={"2047": token})
        said = opened(files).notes
    else:
        said = read_vocabulary(opened(files)).edges
    assert any("'<|fim_suffix|>'" in note and rule in note for note in said), said
    assert read_vocabulary(opened(golden_files())).edges == opened(golden_files()).notes == ()


def test_a_listed_special_token_among_the_pieces_is_found_as_a_whole() -> None:
    vocabulary = read_vocabulary(opened(only_tokenizer_json()))
    index = next(
        i for i in range(300, 2000) if vocabulary.kinds[i] is TokenKind.NORMAL and len(vocabulary.tokens[i]) > 3
    )
    text = vocabulary.tokens[index]
    tokenizer = open_tokenizer(opened(only_tokenizer_json(extra_special_tokens=[text])))
    assert tokenizer.encode(f"x{text}x", add_bos=False)[1:-1] == [index]

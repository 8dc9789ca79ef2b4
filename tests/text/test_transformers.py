"""Token ids of every kind of tokenizer against transformers' `AutoTokenizer` on the same folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from quantkit.text.tokenizers.writing import vocabulary_files
from tests.support.strings import STRINGS
from tests.support.tokenizer_folders import Files, written
from tests.support.tokenizer_kinds import EDGES, EXACT, OTHERS, checkpoint_of

pytestmark = pytest.mark.engine("transformers")
KINDS = {**EXACT, **{name: make for name, (make, _) in EDGES.items()}, **OTHERS}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from transformers.utils import logging  # noqa: PLC0415 - heavy

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)


def auto_tokenizer(files: Files, folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

    written({"config.json": b'{"model_type": "llama"}', **files}, folder)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text) + tokenizer.ending


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    files = KINDS[kind]()
    tokenizer, other = open_tokenizer(checkpoint_of(files)), auto_tokenizer(files, tmp_path)
    assert [text for text in STRINGS if whole(tokenizer, text) != other.encode(text)] == []


@pytest.mark.parametrize("kind", EXACT)
def test_files_that_are_made_of_a_vocabulary_give_the_same_ids(kind: str, tmp_path: Path) -> None:
    source: Checkpoint = checkpoint_of(EXACT[kind]())
    tokenizer = open_tokenizer(source)
    made = vocabulary_files(tokenizer.vocabulary)
    again, other = open_tokenizer(checkpoint_of(made)), auto_tokenizer(made, tmp_path)
    assert again.vocabulary == tokenizer.vocabulary
    for text in STRINGS:
        ids = whole(tokenizer, text)
        assert whole(again, text) == ids == other.encode(text), text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("byte-level")])
def test_bytes_are_decoded_as_in_transformers(kind: str, tmp_path: Path) -> None:
    files = KINDS[kind]()
    tokenizer, other = open_tokenizer(checkpoint_of(files)), auto_tokenizer(files, tmp_path)
    for text in STRINGS:
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.decode(ids) == other.decode(ids), text
        if kind in EXACT:
            assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids[1:]) == other.decode(ids[1:]), text


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_token_with_a_role_is_found_though_it_is_only_a_piece(name: str, tmp_path: Path) -> None:
    files = EXACT["byte-level gpt-2"]()
    rules = json.loads(files["tokenizer.json"])
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] != "<|tool_call|>"]
    config = json.loads(files["tokenizer_config.json"])
    roles = {"pad_token": "<|tool_call|>"}
    files = {**files, "tokenizer.json": json.dumps(rules).encode(), name: json.dumps({**config, **roles}).encode()}
    tokenizer, other = open_tokenizer(checkpoint_of(files)), auto_tokenizer(files, tmp_path)
    for text in STRINGS:
        assert tokenizer.encode(text) == other.encode(text), text

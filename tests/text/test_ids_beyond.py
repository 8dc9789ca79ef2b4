"""A token whose id the embedding has no row for: the weights are read, text is not, and both say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import registry
from quantkit.errors import InconsistentCheckpoint
from quantkit.text.added_tokens import read_added_tokens
from tests.support.malformed_folders import write_small_checkpoint

SIZE = 32


def added(index: int) -> tuple[str, dict[str, Any]]:
    return "added_tokens.json", {"<|x|>": index}


def listed(index: int) -> tuple[str, dict[str, Any]]:
    return "tokenizer.json", {"added_tokens": [{"id": index, "content": "<|x|>", "special": True}]}


def decoded(index: int) -> tuple[str, dict[str, Any]]:
    return "tokenizer_config.json", {"added_tokens_decoder": {str(index): {"content": "<|x|>", "special": True}}}


@pytest.mark.parametrize("index", [SIZE, SIZE + 7, 10**9])
@pytest.mark.parametrize("place", [added, listed, decoded])
def test_a_token_beyond_the_vocabulary_is_told_with_its_mend(
    place: Callable[[int], tuple[str, dict[str, Any]]], index: int, tmp_path: Path
) -> None:
    folder = write_small_checkpoint(tmp_path / "model")
    name, content = place(index)
    with pytest.raises(InconsistentCheckpoint, match=f"has id {index}; vocab_size is {SIZE}") as refusal:
        read_added_tokens({name: lambda: json.dumps(content).encode()}, SIZE)
    assert name in str(refusal.value)
    assert f"{index + 1} rows" in str(refusal.value.hint)
    if place is added:
        (folder / name).write_text(json.dumps(content))
        note = next(note for note in registry.open_checkpoint(folder).notes if "no text can be encoded" in note)
        assert f"has id {index}" in note
        assert f"{index + 1} rows" in note

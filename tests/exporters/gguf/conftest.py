"""The tokenizer that GGUF files of tests carry."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tokenizer_files(golden_model: Path) -> dict[str, bytes]:
    names = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json")
    return {name: (golden_model / name).read_bytes() for name in names}

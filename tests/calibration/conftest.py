"""A small model with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.models.checkpoint import Checkpoint
from quantkit.text.tokenizer import Tokenizer, open_tokenizer
from tests.support.memory import memory_checkpoint, tiny_config


@pytest.fixture(scope="module")
def checkpoint(golden_model: Path) -> Checkpoint:
    files = {path.name: path.read_bytes() for path in golden_model.glob("*token*")}
    return memory_checkpoint(tiny_config(vocab_size=2048), files=files)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return open_tokenizer(checkpoint)

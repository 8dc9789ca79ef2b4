"""A tiny model, and llama.cpp on it in both of its roads."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.llama_cpp.server_session import ServerSession
from quantkit.runtimes.llama_cpp.session import LlamaCppSession
from tests.support.gguf_writer import VOCABULARY, write_gguf
from tests.support.memory import memory_checkpoint, tiny_config


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return memory_checkpoint(tiny_config(vocab_size=VOCABULARY))


@pytest.fixture(scope="session")
def file(checkpoint, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", checkpoint)


@pytest.fixture(scope="module")
def native(file, checkpoint):
    with LlamaCppSession(file, checkpoint.spec) as session:
        yield session


@pytest.fixture(scope="module")
def server(file, checkpoint):
    with ServerSession(file, checkpoint.spec) as session:
        yield session


@pytest.fixture(params=["native", "server"])
def session(request):
    return request.getfixturevalue(request.param)

"""Fixtures that every test file shares, and the meaning of the `engine` marker."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from quantkit import registry
from tests.support.tiny import write_tiny_checkpoint


def pytest_configure() -> None:
    """Let interrupts through: a shell has what it runs in the background ignore them, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `engine(NAME)` where that runtime cannot run, and say what to install."""
    for mark in item.iter_markers("engine"):
        missing = registry.runtime(mark.args[0]).missing()
        if missing is not None:
            pytest.skip(f"{mark.args[0]}: {missing}")


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A random tiny MiniCPM4 folder: bf16, two shards, tied, LongRoPE; the test may change it."""
    return write_tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="session")
def golden_model() -> Path:
    """The trained model of the repository; read only."""
    return Path(__file__).resolve().parent.parent / "golden" / "model"


@pytest.fixture(scope="session")
def untuned_model(golden_model: Path) -> Path:
    """The other trained model of the repository, for perplexity alone; read only."""
    return golden_model.parent / "untuned"

"""Fixtures that every test file shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_tiny_checkpoint


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A random tiny MiniCPM4 folder: bf16, two shards, tied, LongRoPE; the test may change it."""
    return write_tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="session")
def golden_model() -> Path:
    """The trained model of the repository; read only."""
    return Path(__file__).resolve().parent.parent / "golden" / "model"

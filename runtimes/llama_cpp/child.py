"""The child process of llama.cpp, as llama.cpp needs it: its reasons, and its threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import EngineProcess

SMALL_FILE = 256 << 20
"""Bytes below which one thread is fastest: on smaller models threads mostly wait for each other."""


class Child(EngineProcess):
    """The process that holds the engine.

    Args:
        path: the model file, for messages.
        serve: Python code that answers requests, such as `from quantkit...engine import main; main()`.
    """

    def __init__(self, path: Path, serve: str) -> None:
        super().__init__(python_command(serve), engine="llama.cpp", path=path, reason=_loading_error)


def _loading_error(log: Sequence[str]) -> str | None:
    """Why the engine refused the file, in its own words."""
    marker = "error loading model: "
    return next((line.partition(marker)[2] for line in log if marker in line), None)


def threads_for(path: Path) -> int:
    """How many threads evaluate the model in `path` fastest."""
    return 1 if path.stat().st_size < SMALL_FILE else os.cpu_count() or 1

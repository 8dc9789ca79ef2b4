"""The child process of llama.cpp, from both ends: how it is started, and how it answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.runtimes._engine_process import EngineProcess

SMALL_FILE = 256 << 20
"""Bytes below which one thread is fastest: on smaller models threads mostly wait for each other."""
NOTHING = np.empty(0, np.float32)

Answer = Callable[[dict[str, Any]], tuple[Mapping[str, Any], np.ndarray]]
"""Takes a request; returns the head of the answer and its float32 data, `NOTHING` where it has none."""


class Child(EngineProcess):
    """The process that holds the engine.

    Args:
        path: the model file, for messages.
        serve: Python code that answers requests, such as `from quantkit...engine import main; main()`.
    """

    def __init__(self, path: Path, serve: str) -> None:
        code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {serve}"
        command = [sys.executable, "-I", "-c", code, json.dumps(sys.path)]
        super().__init__(command, engine="llama.cpp", path=path, reason=_loading_error)


def _loading_error(log: Sequence[str]) -> str | None:
    """Why the engine refused the file, in its own words."""
    marker = "error loading model: "
    return next((line.partition(marker)[2] for line in log if marker in line), None)


def threads_for(path: Path) -> int:
    """How many threads evaluate the model in `path` fastest."""
    return 1 if path.stat().st_size < SMALL_FILE else os.cpu_count() or 1


def serve(answer: Answer) -> None:
    """Answer requests until stdin ends. What the engine prints goes to stderr, stdout belongs to the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            head, data = answer(json.loads(line))
        except Exception as error:  # the engine's own exceptions have no common base; the parent names the artifact
            head, data = {"error": str(error) or type(error).__name__}, NOTHING
        if data.nbytes:
            head = {**head, "bytes": data.nbytes}
        answers.write(json.dumps(head).encode() + b"\n")
        answers.write(np.ascontiguousarray(data).data)
        answers.flush()

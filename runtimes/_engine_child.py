"""The inside of an `EngineProcess` whose engine is a Python package: how it is started, and how it answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

NOTHING = np.empty(0, np.float32)

Reply = tuple[Mapping[str, Any], np.ndarray]
"""The head of an answer and its float32 data, `NOTHING` where it has none."""
Answer = Callable[[dict[str, Any]], Reply]
"""Answers a request."""


def python_command(code: str) -> list[str]:
    """The command that runs `code` in a Python that finds the packages that this one finds.

    code: what answers requests, such as `from quantkit...engine import main; main()`.
    """
    return [sys.executable, "-I", "-c", f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {code}", _paths()]


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


def serve_engine(load: Callable[..., object], replies: Mapping[str, Callable[[Any], Reply]]) -> None:
    """`serve` an engine that the first request makes: {"do": "load"} and what `load` takes.

    replies: what else a request may do, a method of the engine that takes the rest of it, to how its result is sent.
    """
    engine: object = None

    def answer(request: dict[str, Any]) -> Reply:
        nonlocal engine
        do = request.pop("do")
        if do == "load":
            engine = load(**request)
            return {}, NOTHING
        return replies[do](getattr(engine, do)(**request))

    serve(answer)


def rows_reply(values: np.ndarray) -> Reply:
    """Rows of logits."""
    return {}, values


def stages_reply(values: Mapping[str, np.ndarray]) -> Reply:
    """The stages of a trace: their names, and their values one after the other."""
    return {"stages": list(values)}, np.concatenate([stage.reshape(-1) for stage in values.values()])


def ids_reply(token_ids: list[int]) -> Reply:
    """Tokens of a text."""
    return {"token_ids": token_ids}, NOTHING


def _paths() -> str:
    return json.dumps(sys.path)

"""What sessions of engines in child processes have in common that run a decoder in ONNX: rows of logits, by ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.context import checked_ids
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._cached_decoder import step_of
from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import EngineProcess, EngineSession
from quantkit.runtimes._onnx_allowances import evaluating, loading

STEP = 1024
"""Tokens that are evaluated at a time."""


class OnnxEngineSession(EngineSession):
    """A folder in an engine's child process, which answers `load`, `logits` and `next`.

    Args:
        folder: should have been read strictly before.
        spec: the model's.
        engine: its name in messages.
        serve: Python code that answers requests.
        settings: of the request `load`, beside the folder.

    Raises:
        EngineFailed: the engine refuses the folder.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, engine: str, serve: str, **settings: int | bool) -> None:
        self._path = folder
        self._spec = spec
        self._engine = engine
        self._known = 0
        self._child = EngineProcess(python_command(serve), engine=engine, path=folder)
        try:
            self._child.ask(loading(folder, spec), do="load", folder=str(folder.resolve()), **settings)
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits in float32 [T, V]; row t predicts token t + 1."""
        ids = self._checked(token_ids)
        return self._rows(len(ids), ids, do="logits")

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only tokens that the call before did not have are evaluated."""
        ids = self._checked(token_ids)
        # Keys were turned for the length at hand; other lengths may turn them otherwise.
        anew = not self._spec.rope.turns_alike(self._known, len(ids))
        row: np.ndarray = self._rows(1, ids, do="next", anew=anew)[0]
        self._known = len(ids)
        return row

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        return checked_ids(self._spec, token_ids)

    def _rows(self, count: int, ids: list[int], **request: str | bool) -> np.ndarray:
        step = step_of(self._spec, len(ids), STEP)
        allowance = evaluating(self._path, self._spec, len(ids), step)
        _, data = self._child.ask(allowance, token_ids=ids, step=step, **request)
        values = np.frombuffer(data, np.float32)
        if values.size != count * self._spec.vocab_size:
            raise EngineFailed(f"{self._path}: {self._engine} predicts other tokens than the model's")
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: {self._engine} computed logits that are not numbers")
        return values.reshape(count, -1)

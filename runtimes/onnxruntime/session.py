"""An ONNX folder in onnxruntime: all rows of a prompt in one run, tokens that follow on the cache, and every stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption, EngineFailed
from quantkit.models.context import check_length
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._cached_decoder import LOGITS, stage_names
from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import EngineProcess, EngineSession
from quantkit.runtimes._onnx_allowances import evaluating, loading, size_of

SERVE = "from quantkit.runtimes.onnxruntime.engine import main; main()"
"""What the child runs."""
SMALL_MODEL = 64 << 20
"""Bytes below which one thread is fastest: on smaller models threads mostly wait for each other."""
STEP = 1024
"""Tokens that are evaluated at a time, where RoPE turns the first ones as it turns all."""


class OnnxruntimeSession(EngineSession):
    """The decoder in `folder`, whose numbers are `spec`'s; the folder should have been read strictly before.

    exact: whether inputs of quantized matrices stay what they are; False = as fast as the engine can, with int8 inputs.

    Raises:
        EngineFailed: onnxruntime refuses it.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, exact: bool = True) -> None:
        self._path = folder
        self._spec = spec
        self._known = 0
        threads = 1 if size_of(folder) < SMALL_MODEL else os.cpu_count() or 1
        sizes = {
            "blocks": spec.num_hidden_layers,
            "groups": spec.num_key_value_heads,
            "width": spec.head_dim,
        }
        self._child = EngineProcess(python_command(SERVE), engine="onnxruntime", path=folder)
        try:
            where = str(folder.resolve())
            allowance = loading(folder, spec)
            self._child.ask(allowance, do="load", folder=where, threads=threads, exact=exact, **sizes)
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits in float32 [T, V]; row t predicts token t + 1."""
        ids = self._checked(token_ids)
        self._known = 0
        return self._numbers(len(ids), do="logits", token_ids=ids, step=self._step(len(ids)))

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only tokens that the call before did not have are evaluated."""
        ids = self._checked(token_ids)
        anew = not self._spec.rope.turns_alike(self._known, len(ids))
        self._known = len(ids)
        row: np.ndarray = self._numbers(1, do="next", token_ids=ids, step=self._step(len(ids)), anew=anew)[0]
        return row

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32.

        NaN passes: it shows where it began.
        """
        ids, names = self._checked(token_ids), stage_names(self._spec.num_hidden_layers)
        allowance = evaluating(self._path, self._spec, len(ids), len(ids))
        answer, data = self._child.ask(allowance, do="trace", token_ids=ids)
        values, stages, start = np.frombuffer(data, np.float32), {}, 0
        for name, width in zip((*names, LOGITS), answer["widths"], strict=True):
            stages[name] = values[start : start + len(ids) * width].reshape(len(ids), width)
            start += len(ids) * width
        return stages

    def _step(self, tokens: int) -> int:
        return STEP if self._spec.rope.turns_alike(STEP, tokens) else tokens

    def _numbers(self, rows: int, **request: str | int | bool | list[int]) -> np.ndarray:
        tokens, step = request["token_ids"], request["step"]
        assert isinstance(tokens, list)
        assert isinstance(step, int)
        _, data = self._child.ask(evaluating(self._path, self._spec, len(tokens), step), **request)
        values = np.frombuffer(data, np.float32)
        if values.size != rows * self._spec.vocab_size:
            raise EngineFailed(f"{self._path}: onnxruntime predicts other tokens than the model's")
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: onnxruntime computed logits that are not numbers")
        return values.reshape(rows, -1)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        if not ids or not all(0 <= token < self._spec.vocab_size for token in ids):
            raise BadOption(f"token ids must be one or more numbers below {self._spec.vocab_size}")
        check_length(self._spec, len(ids))
        return ids

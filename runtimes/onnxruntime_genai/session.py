"""An ONNX folder in onnxruntime-genai's `Generator`, on token ids.

Its own tokenizer reads a text otherwise than the model's, measured with 0.18 on the golden model
(`tests/runtimes/onnxruntime_genai/test_tokenizer.py`): it puts no beginning-of-sequence token first unless it is told
to, and of several spaces before a word it gives the last one to the word, where the model's keeps them together, so
that indented code becomes other ids. It is therefore given ids alone; `own_token_ids` tells what it would have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption, EngineFailed
from quantkit.models.context import check_length
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import EngineProcess, EngineSession
from quantkit.runtimes._onnx_allowances import evaluating, loading
from quantkit.runtimes.onnxruntime_genai.settings import context_of

SERVE = "from quantkit.runtimes.onnxruntime_genai.engine import main; main()"
"""What the child runs."""
STEP = 1024
"""Tokens that are evaluated at a time, where RoPE turns the first ones as it turns all."""


class OnnxruntimeGenaiSession(EngineSession):
    """The folder in onnxruntime-genai, whose numbers are `spec`'s; it should have been read strictly before.

    Raises:
        UnsafePath, MalformedFile: see `context_of`.
        EngineFailed: onnxruntime-genai refuses it.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._path = folder
        self._spec = spec
        self._context = context_of(folder)
        self._known = 0
        self._child = EngineProcess(python_command(SERVE), engine="onnxruntime-genai", path=folder)
        try:
            where = str(folder.resolve())
            self._child.ask(loading(folder, spec), do="load", folder=where, context=self._context)
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits in float32 [T, V]; row t predicts token t + 1."""
        ids = self._checked(token_ids)
        return self._numbers(len(ids), do="logits", token_ids=ids, step=self._step(len(ids)))

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only tokens that the call before did not have are evaluated."""
        ids = self._checked(token_ids)
        anew = not self._spec.rope.turns_alike(self._known, len(ids))
        self._known = len(ids)
        row: np.ndarray = self._numbers(1, do="next", token_ids=ids, step=self._step(len(ids)), anew=anew)[0]
        return row

    def own_token_ids(self, text: str, *, add_special: bool) -> list[int]:
        """What its own tokenizer makes of `text`; add_special: with the beginning-of-sequence token."""
        allowance = evaluating(self._path, self._spec, len(text) + 1, 1)
        answer, _ = self._child.ask(allowance, do="tokenize", text=text, add_special=add_special)
        tokens: list[int] = answer["token_ids"]
        return tokens

    def _step(self, tokens: int) -> int:
        return STEP if self._spec.rope.turns_alike(STEP, tokens) else tokens

    def _numbers(self, rows: int, **request: str | int | bool | list[int]) -> np.ndarray:
        tokens, step = request["token_ids"], request["step"]
        assert isinstance(tokens, list)
        assert isinstance(step, int)
        _, data = self._child.ask(evaluating(self._path, self._spec, len(tokens), step), **request)
        values = np.frombuffer(data, np.float32)
        if values.size != rows * self._spec.vocab_size:
            raise EngineFailed(f"{self._path}: onnxruntime-genai predicts other tokens than the model's")
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: onnxruntime-genai computed logits that are not numbers")
        return values.reshape(rows, -1)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        if not ids or not all(0 <= token < self._spec.vocab_size for token in ids):
            raise BadOption(f"token ids must be one or more numbers below {self._spec.vocab_size}")
        check_length(self._spec, len(ids))
        if len(ids) > self._context:
            raise BadOption(
                f"{self._path} was exported for contexts of {self._context} tokens, and these are {len(ids)}",
                hint="export it for a longer --context",
            )
        return ids

"""A folder in OpenVINO: what quantkit asks of the child process that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption, EngineFailed
from quantkit.models.context import checked_ids
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import EngineProcess, EngineSession, stages_in
from quantkit.runtimes.openvino.allowances import evaluating, loading, tokenizing

STEP = 512
"""Tokens that are computed at a time, where the rotation allows it."""
SERVE = "from quantkit.runtimes.openvino.engine import main; main()"
"""What the child runs."""


class OpenVINOSession(EngineSession):
    """A graph in OpenVINO. `spec` is the model's; the folder should have been read strictly before.

    Args:
        path: the folder, for messages. xml: the graph in it. size: bytes of its weights.

    Raises:
        EngineFailed: the engine refuses the graph.
    """

    def __init__(self, path: Path, xml: Path, spec: ModelSpec, size: int) -> None:
        self._path = path
        self._spec = spec
        self._size = size
        self._known = 0
        self._child = EngineProcess(python_command(SERVE), engine="OpenVINO", path=path)
        try:
            self._child.ask(loading(spec, size), do="load", path=str(xml), size=spec.vocab_size)
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        ids, step = self._checked(token_ids)
        self._known = 0
        rows = self._numbers("logits", ids, step).reshape(len(ids), self._spec.vocab_size)
        self._known = len(ids)
        return rows

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only what follows the ids of the call before is computed.

        All is computed anew where RoPE turns the tokens of before otherwise in the longer sequence.
        """
        ids, step = self._checked(token_ids)
        anew = not self._spec.rope.turns_alike(self._known, len(ids))
        row = self._numbers("next", ids, step, anew=anew)
        self._known = len(ids)
        return row

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32.

        NaN passes: it shows where it began.
        """
        ids, _ = self._checked(token_ids)
        answer, data = self._child.ask(
            evaluating(self._spec, self._size, len(ids), len(ids)), do="trace", token_ids=ids
        )
        return stages_in(answer["stages"], np.frombuffer(data, np.float32), len(ids), self._spec)

    def _checked(self, token_ids: Sequence[int]) -> tuple[list[int], int]:
        """The ids as a list, and how many may be computed at a time: all, where the length tells how they turn."""
        ids = checked_ids(self._spec, token_ids)
        return ids, STEP if self._spec.rope.turns_alike(STEP, len(ids)) else len(ids)

    def _numbers(self, do: str, ids: list[int], step: int, **how: bool) -> np.ndarray:
        allowance = evaluating(self._spec, self._size, len(ids), min(step, len(ids)))
        _, data = self._child.ask(allowance, do=do, token_ids=ids, step=step, **how)
        values = np.frombuffer(data, np.float32)
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: OpenVINO computed logits that are not numbers")
        return values


class TokenizingSession(OpenVINOSession):
    """A folder with a tokenizer's graph in it, `tokenizer`; else as `OpenVINOSession`."""

    def __init__(self, path: Path, xml: Path, spec: ModelSpec, size: int, *, tokenizer: Path) -> None:
        super().__init__(path, xml, spec, size)
        self._tokenizer = tokenizer

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text` by the graph in the folder.

        add_special: with what the graph puts first. parse_special: read `<|im_start|>` and the like as the tokens they
        name, which the graph always does.
        """
        if not parse_special:
            raise BadOption("the tokenizer's graph reads special tokens wherever they stand")
        first = [] if add_special else self._token_ids("")
        return self._token_ids(text)[len(first) :]

    def _token_ids(self, text: str) -> list[int]:
        allowance = tokenizing(self._spec, self._size, text)
        answer, _ = self._child.ask(allowance, do="tokenize", graph=str(self._tokenizer), text=text)
        tokens: list[int] = answer["token_ids"]
        return tokens

"""A GGUF file in llama.cpp's C API: all rows of a prompt in one evaluation, and every stage of it.

With float32 weights llama.cpp agrees with the reference runtime to 3e-6, where its defaults (float16 keys and values)
differ by 3e-4 (`tests/runtimes/llama_cpp/test_session.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import EngineSession, stages_in
from quantkit.runtimes.llama_cpp.allowances import evaluating, loading, tokenizing
from quantkit.runtimes.llama_cpp.child import Child, threads_for
from quantkit.runtimes.llama_cpp.context import context_size
from quantkit.runtimes.llama_cpp.library import UnknownLayout

SMALLEST_CONTEXT = 1024
SERVE = "from quantkit.runtimes.llama_cpp.engine import main; main()"
"""What the child runs."""


class LlamaCppSession(EngineSession):
    """A GGUF file in llama.cpp. `spec` is the model's; the file should have been read strictly before.

    Raises:
        UnknownLayout: the installed release cannot be trusted; nothing was loaded.
        EngineFailed: it refuses the file.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._path = path
        self._spec = spec
        self._child = Child(path, SERVE)
        try:
            size = spec.vocab_size
            allowance = loading(path, spec, SMALLEST_CONTEXT)
            answer, _ = self._child.ask(allowance, do="load", path=str(path), size=size, threads=threads_for(path))
            if "unknown_layout" in answer:
                raise UnknownLayout(answer["unknown_layout"])
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits in float32 [T, V], one evaluation for all; row t predicts token t + 1."""
        return self._numbers("logits", token_ids).reshape(len(token_ids), self._spec.vocab_size)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only tokens that the call before did not have are evaluated."""
        return self._numbers("next", token_ids)

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32.

        NaN passes: it shows where it began.
        """
        names, values = self._ask("trace", token_ids)
        return stages_in(names, values, len(token_ids), self._spec)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text` by the vocabulary inside the file.

        add_special: put the beginning-of-sequence token first, if the file says so.
        parse_special: read `<|im_start|>` and the like as the tokens they name, not as text.
        """
        allowance = tokenizing(self._path, self._spec, SMALLEST_CONTEXT, text)
        answer, _ = self._child.ask(
            allowance, do="tokenize", text=text, add_special=add_special, parse_special=parse_special
        )
        tokens: list[int] = answer["token_ids"]
        return tokens

    def _ask(self, do: str, token_ids: Sequence[int]) -> tuple[list[str], np.ndarray]:
        """Names of the stages, where it is a trace, and all values, flat."""
        ids = [int(token) for token in token_ids]
        n_ctx = context_size(self._path, self._spec, len(ids), smallest=SMALLEST_CONTEXT)
        allowance = evaluating(self._path, self._spec, n_ctx, len(ids))
        answer, data = self._child.ask(allowance, do=do, token_ids=ids, n_ctx=n_ctx)
        return answer.get("stages", []), np.frombuffer(data, np.float32)

    def _numbers(self, do: str, token_ids: Sequence[int]) -> np.ndarray:
        values = self._ask(do, token_ids)[1]
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: llama.cpp computed logits that are not numbers")
        return values

"""An MLX folder in mlx-lm, through a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import checked_ids
from quantkit.runtimes._engine_child import python_command
from quantkit.runtimes._engine_process import Allowance, EngineProcess, EngineSession, stages_in
from quantkit.runtimes._staged_folder import staged_folder

SERVE = "from quantkit.runtimes.mlx.engine import main; main()"
"""What the child runs."""
SECONDS, SECONDS_PER_TOKEN = 120.0, 0.2
LOADED_PER_SECOND, READ_PER_SECOND = 20e6, 50e6
"""Bytes of weights, on a slow and busy machine."""
PROCESS, COPIES = 3 << 30, 6
"""What mlx-lm and the packages that it imports may hold, and how often the weights: dense ones become float32."""
ROWS = 1024
"""Tokens that are evaluated at a time, at most."""


class MLXSession(EngineSession):
    """A folder in mlx-lm, computed in float32. It is handed a config of ours, which names no code (`_staged_folder`).

    Raises:
        EngineFailed: mlx-lm refuses the folder.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._spec = checkpoint.spec
        self._size = sum(file.stat().st_size for file in checkpoint.inputs)
        self._child = EngineProcess(python_command(SERVE), engine="mlx-lm", path=self._path)
        try:
            with staged_folder(checkpoint, settings="quantization") as folder:
                allowed = Allowance("loading the model", SECONDS + self._size / LOADED_PER_SECOND, self._memory(0))
                self._child.ask(allowed, do="load", path=str(folder), size=self._spec.vocab_size)
        except BaseException:
            self._child.close()
            raise

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits in float32 [T, V]; row t predicts token t + 1."""
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

    def _ask(self, do: str, token_ids: Sequence[int]) -> tuple[list[str], np.ndarray]:
        """Names of the stages, where it is a trace, and all values, flat."""
        ids = checked_ids(self._spec, token_ids)
        seconds = SECONDS + len(ids) * (self._size / READ_PER_SECOND + SECONDS_PER_TOKEN)
        allowance = Allowance(f"evaluating {len(ids)} tokens", seconds, self._memory(len(ids)))
        answer, data = self._child.ask(allowance, do=do, token_ids=ids)
        return answer.get("stages", []), np.frombuffer(data, np.float32)

    def _numbers(self, do: str, token_ids: Sequence[int]) -> np.ndarray:
        values = self._ask(do, token_ids)[1]
        if np.isnan(values).any():
            raise EngineFailed(f"{self._path}: mlx-lm computed logits that are not numbers")
        return values

    def _memory(self, tokens: int) -> int:
        """Bytes that the engine may hold for so many tokens: weights, keys and values, scores, logits and stages."""
        spec = self._spec
        kept = 16 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * tokens
        scores = 12 * spec.num_attention_heads * ROWS * tokens
        part = 16 * ROWS * (spec.vocab_size + 4 * spec.intermediate_size)
        answer = 16 * tokens * (spec.vocab_size + (spec.num_hidden_layers + 3) * spec.hidden_size)
        return PROCESS + COPIES * self._size + kept + scores + part + answer

"""A second opinion on MLX folders, where mlx runs or not: container and arithmetic from their definitions, in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit import registry
from quantkit.errors import EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import checked_ids
from quantkit.runtimes._kernels._rules import RENAMED
from quantkit.runtimes._kernels.mlx import MLX_LM, misread
from quantkit.runtimes.mlx_numpy.container import Container
from quantkit.runtimes.mlx_numpy.forward import Forward

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHT_BUDGET = 2 << 30
"""Bytes of float32 weights that are kept; those of larger models are computed anew at every use."""
PART = 1024
"""Tokens that are evaluated at a time, at most, as mlx-lm does it."""


class MLXNumpySession:
    """A folder that was read strictly before."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._spec = checkpoint.spec
        self._forward = Forward(checkpoint.spec, Container(checkpoint.inputs, WEIGHT_BUDGET))
        self._ids: list[int] = []
        self._past = self._forward.past()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        logits: np.ndarray = self.trace(token_ids)["logits"]
        return logits

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only tokens that the call before did not have are evaluated."""
        ids = checked_ids(self._spec, token_ids)
        shared = 0
        while shared < min(len(self._ids), len(ids) - 1) and self._ids[shared] == ids[shared]:
            shared += 1
        self._past.cut(shared)
        for start in range(shared, len(ids), PART):
            stages = self._forward.stages(ids[start : start + PART], self._past)
        self._ids = ids
        row: np.ndarray = stages["logits"][-1]
        return row

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32."""
        ids, past = checked_ids(self._spec, token_ids), self._forward.past()
        parts = [self._forward.stages(ids[start : start + PART], past) for start in range(0, len(ids), PART)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class MLXNumpyRuntime:
    """What mlx-lm should compute; it takes what mlx-lm takes."""

    name = "mlx-numpy"
    summary = "MLX's container and arithmetic in numpy, float32, read from the bytes"
    formats = MLX_LM.containers
    architectures = MLX_LM.architectures

    def missing(self) -> str | None:
        """Always None: numpy is all it needs."""
        return None

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Everything in float32."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why mlx-lm cannot load this folder, or None."""
        return RENAMED if checkpoint.renamed else MLX_LM.verdict(checkpoint).refusal or misread(checkpoint)

    def open(self, path: Path) -> MLXNumpySession:
        """Read the folder strictly, then its bytes anew; raises `EngineFailed` where mlx-lm takes no such model."""
        checkpoint = registry.open_checkpoint(path)
        refusal = self.refuses(checkpoint)
        if refusal is not None:
            raise EngineFailed(f"{path}: mlx-lm cannot run this: {refusal}", hint="export mlx SOURCE --arch llama")
        return MLXNumpySession(checkpoint)


RUNTIME = MLXNumpyRuntime()

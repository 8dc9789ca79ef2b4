"""The engine of Macs, which runs on a CPU as well."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantkit import registry
from quantkit.errors import EngineFailed, MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels._rules import RENAMED
from quantkit.runtimes._kernels.mlx import MLX_LM, misread
from quantkit.runtimes.mlx.own_speed import own_speed
from quantkit.runtimes.mlx.session import MLXSession


class MLXRuntime:
    """mlx-lm on MLX folders. What it takes is told by `_kernels/mlx.py`."""

    name = "mlx"
    summary = "mlx-lm on this machine's CPU or GPU, float32 (packages mlx and mlx-lm)"
    formats = MLX_LM.containers
    architectures = MLX_LM.architectures

    def missing(self) -> str | None:
        """None when mlx and mlx-lm are installed."""
        found = importlib.util.find_spec("mlx") and importlib.util.find_spec("mlx_lm")
        return None if found else "pip install 'quantkit[mlx]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Float32, which the session asks for."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why mlx-lm cannot load this folder, or None."""
        return RENAMED if checkpoint.renamed else MLX_LM.verdict(checkpoint).refusal or misread(checkpoint)

    def own_speed(self, path: Path, prompt_tokens: int, decode_tokens: int, rounds: int) -> tuple[str, float, float]:
        """See `quantkit.verification.speed.SelfTiming`: mlx-lm has a benchmark of its own."""
        return own_speed(path, prompt_tokens, decode_tokens, rounds)

    def open(self, path: Path) -> MLXSession:
        """Read the folder strictly, then load it in mlx-lm; raises `EngineFailed` where it takes no such model."""
        install = self.missing()
        if install is not None:
            raise MissingDependency("mlx needs the packages mlx and mlx-lm", hint=install)
        checkpoint = registry.open_checkpoint(path)
        refusal = self.refuses(checkpoint)
        if refusal is not None:
            raise EngineFailed(
                f"{path}: mlx-lm cannot run this: {refusal}",
                hint="fold the family's scalars into a Llama: quantkit export mlx SOURCE --arch llama --out DIR",
            )
        return MLXSession(checkpoint)


RUNTIME = MLXRuntime()

"""The engine that most ONNX files meet in the end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantkit import registry
from quantkit.errors import MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._cached_decoder import arithmetic_of
from quantkit.runtimes._kernels.onnxruntime import ONNXRUNTIME
from quantkit.runtimes.onnxruntime.session import OnnxruntimeSession

PACKAGES = ("onnxruntime", "onnx")


class OnnxruntimeRuntime:
    """onnxruntime on ONNX folders."""

    name = "onnxruntime"
    summary = "ONNX Runtime on this machine's CPU, inputs of quantized matrices not rounded"
    formats = ONNXRUNTIME.containers
    architectures = ONNXRUNTIME.architectures

    def missing(self) -> str | None:
        """None when onnxruntime is installed, and onnx, by which its graph is told what to show."""
        return None if all(map(importlib.util.find_spec, PACKAGES)) else "pip install 'quantkit[onnx]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """That of the graph: float32 or float16."""
        return arithmetic_of(checkpoint)

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why it cannot run this folder, or None."""
        return ONNXRUNTIME.verdict(checkpoint).refusal

    def open(self, path: Path) -> OnnxruntimeSession:
        """Read the folder strictly, then let the engine load it; its parser never sees what ours refused."""
        install = self.missing()
        if install is not None:
            raise MissingDependency("onnxruntime needs the packages onnxruntime and onnx", hint=install)
        checkpoint = registry.open_checkpoint(path)
        return OnnxruntimeSession(checkpoint.path, checkpoint.spec, sparsely=checkpoint.attention == "sparse")


RUNTIME = OnnxruntimeRuntime()

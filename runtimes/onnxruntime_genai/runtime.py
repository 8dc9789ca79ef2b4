"""The engine that applications run ONNX folders with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantkit import registry
from quantkit.errors import MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._cached_decoder import arithmetic_of
from quantkit.runtimes._kernels.onnxruntime import GENAI
from quantkit.runtimes.onnxruntime_genai.session import OnnxruntimeGenaiSession


class OnnxruntimeGenaiRuntime:
    """onnxruntime-genai on ONNX folders, as they are."""

    name = "onnxruntime-genai"
    summary = "onnxruntime-genai's Generator on this machine's CPU, on token ids"
    formats = GENAI.containers
    architectures = GENAI.architectures

    def missing(self) -> str | None:
        """None when onnxruntime-genai is installed."""
        return None if importlib.util.find_spec("onnxruntime_genai") else "pip install 'quantkit[onnx]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """That of the graph: float32 or float16."""
        return arithmetic_of(checkpoint)

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why it cannot run this folder, or None."""
        return GENAI.verdict(checkpoint).refusal

    def open(self, path: Path) -> OnnxruntimeGenaiSession:
        """Read the folder strictly, then let the engine load it; its parser never sees what ours refused."""
        install = self.missing()
        if install is not None:
            raise MissingDependency("onnxruntime-genai needs the package onnxruntime-genai", hint=install)
        checkpoint = registry.open_checkpoint(path)
        return OnnxruntimeGenaiSession(checkpoint.path, checkpoint.spec)


RUNTIME = OnnxruntimeGenaiRuntime()

"""The witness of the ONNX container that needs nothing installed."""

from __future__ import annotations

from pathlib import Path

from quantkit import registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._cached_decoder import arithmetic_of
from quantkit.runtimes.onnx_numpy.session import OnnxNumpySession


class OnnxNumpyRuntime:
    """ONNX folders, operator by operator."""

    name = "onnx-numpy"
    summary = "the operators of an ONNX graph in numpy float32, slow and by definition"
    formats = ("onnx",)
    architectures = ("minicpm", "llama")

    def missing(self) -> str | None:
        """Always None: numpy is all it needs."""
        return None

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """That of the graph: float32, or float16, to which it rounds what every operator makes."""
        return arithmetic_of(checkpoint)

    def refuses(self, checkpoint: Checkpoint) -> None:
        """Always None: what the graph asks for is known when it is opened."""

    def open(self, path: Path) -> OnnxNumpySession:
        """Read the folder strictly, then the graph; raises what the reader and `OnnxNumpySession` do."""
        checkpoint = registry.open_checkpoint(path)
        return OnnxNumpySession(checkpoint.path, checkpoint.spec, sparsely=checkpoint.attention == "sparse")


RUNTIME = OnnxNumpyRuntime()

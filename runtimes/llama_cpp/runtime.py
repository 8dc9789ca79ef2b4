"""The engine that most GGUF files meet in the end."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

from quantkit import registry
from quantkit.errors import MissingDependency
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.precision import QUANTIZED, precision_of
from quantkit.runtimes._kernels.llama_cpp import GGML, WIDE_INPUTS, stored_types
from quantkit.runtimes.llama_cpp.library import UnknownLayout
from quantkit.runtimes.llama_cpp.server_session import ServerSession
from quantkit.runtimes.llama_cpp.session import LlamaCppSession


class LlamaCppRuntime:
    """llama.cpp on GGUF files, through its C API where the installed release is one that is known."""

    name = "llama-cpp"
    summary = "llama.cpp on this machine's CPU or GPU (package xllamacpp)"
    formats = GGML.containers
    architectures = GGML.architectures

    def missing(self) -> str | None:
        """None when xllamacpp is installed."""
        return None if importlib.util.find_spec("xllamacpp") else "pip install 'quantkit[llama-cpp]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """ggml rounds the inputs of a product to what its kernel for the weights takes; the coarsest counts."""
        if not stored_types(checkpoint).isdisjoint(WIDE_INPUTS):
            return "int8 inputs of 256"
        inputs = {QUANTIZED: "int8 inputs", "float16": "float16 inputs", "bfloat16": "bfloat16 inputs"}
        return inputs.get(precision_of(checkpoint), "float32")

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why llama.cpp cannot load this file, or None."""
        return GGML.verdict(checkpoint).refusal

    def open(self, path: Path) -> LlamaCppSession | ServerSession:
        """Read the file strictly, then let the engine load it; its parser never sees what ours refused.

        Warns, and drives the package's server, where the C API of the installed release is not to be trusted: the same
        numbers, one row at a time, and no trace.
        """
        install = self.missing()
        if install is not None:
            raise MissingDependency("llama.cpp needs the package xllamacpp", hint=install)
        checkpoint = registry.open_checkpoint(path)
        first, spec = checkpoint.path, checkpoint.spec  # of a split model, the part that the engine asks for
        try:
            return LlamaCppSession(first, spec)
        except UnknownLayout as reason:
            warnings.warn(f"llama.cpp runs slowly, through xllamacpp's server: {reason}", stacklevel=2)
            return ServerSession(first, spec)


RUNTIME = LlamaCppRuntime()

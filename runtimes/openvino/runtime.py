"""The engine of Intel's processors, and of the MiniCPM client for AI PCs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quantkit import registry
from quantkit.errors import MissingDependency
from quantkit.files.member import open_member
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes._kernels.openvino import OPENVINO
from quantkit.runtimes.openvino.session import OpenVINOSession, TokenizingSession

TOKENIZER = "openvino_tokenizer.xml"


class OpenVINORuntime:
    """OpenVINO on the graphs that quantkit writes, on the CPU, in float32."""

    name = "openvino"
    summary = "OpenVINO on this machine's CPU, in float32 (package openvino)"
    formats = OPENVINO.containers
    architectures = OPENVINO.architectures

    def missing(self) -> str | None:
        """None when openvino is installed."""
        return None if importlib.util.find_spec("openvino") else "pip install 'quantkit[openvino]'"

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Everything in float32: `EXECUTION_MODE_HINT=ACCURACY`."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """Why OpenVINO cannot load this folder, or None."""
        return OPENVINO.verdict(checkpoint).refusal

    def open(self, path: Path) -> OpenVINOSession:
        """Read the folder strictly, then let the engine load it; its parser never sees what ours refused.

        The session can `tokenize` where the folder has a tokenizer's graph and openvino-tokenizers is installed.
        """
        install = self.missing()
        if install is not None:
            raise MissingDependency("OpenVINO needs the package openvino", hint=install)
        checkpoint = registry.open_checkpoint(path)
        xml = next(file for file in checkpoint.inputs if file.suffix == ".xml")
        size = sum(file.stat().st_size for file in checkpoint.inputs)
        tokenizer = path / TOKENIZER
        if not (importlib.util.find_spec("openvino_tokenizers") and tokenizer.is_file()):
            return OpenVINOSession(path, xml, checkpoint.spec, size)
        for file in (tokenizer, tokenizer.with_suffix(".bin")):
            open_member(path, file.name)
        return TokenizingSession(path, xml, checkpoint.spec, size, tokenizer=tokenizer)


RUNTIME = OpenVINORuntime()

"""The small reference of the container: its own bytes and operators, where `reference` reads codes and has formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit import registry
from quantkit.errors import EngineFailed
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import checked_ids
from quantkit.models.spec import ModelSpec
from quantkit.runtimes._openvino_inputs import LOGITS, step_inputs
from quantkit.runtimes.openvino_numpy.graph import Graph

if TYPE_CHECKING:
    from typing_extensions import Self


class NumpySession:
    """A graph and what its state holds."""

    def __init__(self, graph: Graph, spec: ModelSpec) -> None:
        self._graph = graph
        self._spec = spec
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        ids = checked_ids(self._spec, token_ids)
        self._forget()
        return self._extended(ids)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; only what follows the ids of the call before is computed."""
        ids = checked_ids(self._spec, token_ids)
        known = len(self._held)
        alike = self._spec.rope.turns_alike(known, len(ids))
        if not alike or known >= len(ids) or ids[:known] != self._held:
            self._forget()
        row: np.ndarray = self._extended(ids[len(self._held) :])[-1]
        return row

    def _forget(self) -> None:
        self._graph.reset_state()
        self._held = []

    def _extended(self, part: list[int]) -> np.ndarray:
        rows = self._graph.run(step_inputs(part, len(self._held)), LOGITS)
        if rows.shape != (1, len(part), self._spec.vocab_size):
            raise EngineFailed(f"the graph's logits have the shape {list(rows.shape)}")
        self._held = [*self._held, *part]
        logits: np.ndarray = rows[0].astype(np.float32, copy=False)
        return logits


class OpenVINONumpyRuntime:
    """The graph's operators in numpy."""

    name = "openvino-numpy"
    summary = "OpenVINO's operators in numpy float32, slow: what the graph says, without the engine"
    formats = ("openvino",)
    architectures = ("minicpm", "llama")

    def missing(self) -> str | None:
        """Always None: numpy is all it needs."""
        return None

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Everything in float32."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> None:
        """Always None: what was read can be run."""

    def open(self, path: Path) -> NumpySession:
        """Read the folder strictly, then its graph; raises reading errors, `EngineFailed` and `MalformedFile`."""
        checkpoint = registry.open_checkpoint(path)
        xml, weights = (SourceFile.open(file) for file in checkpoint.inputs)
        return NumpySession(Graph(xml, weights), checkpoint.spec)


RUNTIME = OpenVINONumpyRuntime()

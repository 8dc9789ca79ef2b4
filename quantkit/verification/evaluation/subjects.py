"""The models that are evaluated: opened, found comparable, and asked for their predictions window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import cast

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption, EngineFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense, check_length
from quantkit.progress import Progress
from quantkit.protocols import OracleSession, Runtime, Session
from quantkit.verification.engines import ORACLE, choose_engine
from quantkit.verification.sparse.oracle import SPARSE

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """An artifact and the engine that runs it."""

    checkpoint: Checkpoint
    runtime: Runtime

    @property
    def is_exact(self) -> bool:
        """Whether the reference runs it."""
        return self.runtime.name == ORACLE

    @property
    def name(self) -> str:
        """For messages."""
        return self.checkpoint.path.name


def open_source(path: Path) -> Checkpoint:
    """The model that artifacts are compared with.

    Raises:
        UnsupportedModel, BadOption: it does not attend densely. What `open_checkpoint` raises.
    """
    source = registry.open_checkpoint(path)
    _check_attention(source)
    return source


def open_subject(path: Path, engine: str, source: Checkpoint) -> Subject:
    """An artifact of `source`, and the engine of this name, or "auto".

    Raises:
        UnsupportedModel, BadOption: it does not attend densely, or has another vocabulary than the source.
        EngineFailed: the engine does not take it. What `open_checkpoint` and `choose_engine` raise.
    """
    checkpoint = registry.open_checkpoint(path)
    _check_attention(checkpoint)
    size, wanted = checkpoint.spec.vocab_size, source.spec.vocab_size
    if size != wanted:
        raise BadOption(
            f"{path} has {size:,} tokens, the source {wanted:,}: their predictions cannot be compared",
            hint="evaluate an artifact against the model that it was made from: --against",
        )
    runtime = choose_engine(engine, checkpoint)
    refusal = runtime.refuses(checkpoint)
    if refusal is not None:
        raise EngineFailed(f"{path}: {runtime.name} cannot run this: {refusal}", hint=f"--engine {ORACLE} runs it")
    return Subject(checkpoint, runtime)


def check_windows(models: Sequence[Checkpoint], longest: int) -> None:
    """Raise `BadOption` for windows longer than the context of one of the models."""
    for model in models:
        check_length(model.spec, longest, what=f"{model.path}: a window")


def exact_predictions(
    checkpoint: Checkpoint, windows: Ids, stack: ExitStack, progress: Progress
) -> Iterator[np.ndarray]:
    """The reference's logits of every window, float32 [T, V], one at a time: all windows pass through a block together.

    stack: what closes its session. progress: told of the whole.
    """
    session = cast(OracleSession, stack.enter_context(registry.runtime(ORACLE).open(checkpoint.path)))

    def told(what: str, done: int, total: int) -> None:
        progress(f"{checkpoint.path.name}: {what}", done, total)

    # `map` holds on to nothing: two windows' logits would be in memory at a time.
    return map(attrgetter("exact"), session.predictions(windows, int8_run=None, progress=told))


def engine_predictions(
    subject: Subject, session: Session, windows: Ids, vocabulary: int, progress: Progress
) -> Iterator[np.ndarray]:
    """An engine's logits of every window, one at a time, float32 [T, V]; progress: told of windows.

    Raises:
        EngineFailed: the engine fails, or its logits are not those of every position.
    """
    name = subject.runtime.name
    for number, ids in enumerate(windows, 1):
        progress(f"{subject.name}: {name}, window {number} of {len(windows)}", number - 1, len(windows))
        logits = session.logits(ids)
        if logits.shape != (len(ids), vocabulary):
            raise EngineFailed(
                f"{subject.checkpoint.path}: {name} gave logits {list(logits.shape)} for {len(ids)} tokens, "
                f"not [{len(ids)}, {vocabulary}]",
                hint=f"--engine {ORACLE} gives those of every position",
            )
        progress(f"{subject.name}: {name}, window {number} of {len(windows)}", number, len(windows))
        yield logits
        del logits  # before the next ones are computed


def _check_attention(checkpoint: Checkpoint) -> None:
    check_dense(checkpoint, "evaluate")
    if checkpoint.attention == SPARSE:
        raise BadOption(
            f"{checkpoint.path} attends sparsely by itself, and dense predictions are compared",
            hint="export it with --attention dense, or `quantkit verify` it",
        )

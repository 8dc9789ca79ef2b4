"""How fast a training is, and how much of it is done: what progress is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from quantkit.progress import Progress, unwatched
from quantkit.training.saved_state import Position
from quantkit.training.schedule import RECONSTRUCTION, Stage


class Speed:
    """Tells `progress` of steps: "distillation 340 of 800, loss 0.0123, 4,210 tokens/s".

    blocks: of the model; a step on one counts as much as its part of the model. clock: seconds.
    """

    def __init__(self, progress: Progress | None, blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress or unwatched
        self._blocks = blocks
        self._clock = clock
        self._planned: Sequence[Stage] = ()
        self._started = 0.0
        self._tokens = 0.0

    def begin(self, planned: Sequence[Stage], position: Position) -> None:
        """Take the time; `position` is where an earlier run got to."""
        self._planned, self._started, self._tokens = planned, self._clock(), 0.0
        stage = planned[position.stage] if position.stage < len(planned) else None
        done = position.step * (stage.steps if stage is not None and stage.name == RECONSTRUCTION else 1)
        what = stage.name if stage is not None else "training"
        self._progress(what, self._done(planned[: position.stage], stage, done), self._done(planned, None, 0))

    def tell(self, stage: Stage, done: int, loss: float, tokens: int) -> None:
        """After a step: `done` steps of `stage`, on all blocks together where it goes by blocks."""
        part = self._part(stage)
        self._tokens += tokens * part
        speed = self._tokens / max(self._clock() - self._started, 1e-9)
        steps = round(stage.steps / part)
        before = self._planned[: self._planned.index(stage)]
        self._progress(
            f"{stage.name} {done:,} of {steps:,}, loss {loss:.4g}, {speed:,.0f} tokens/s",
            self._done(before, stage, done),
            self._done(self._planned, None, 0),
        )

    def _done(self, before: Sequence[Stage], stage: Stage | None, steps: int) -> float:
        """Work, in steps of the whole model."""
        return sum(one.steps for one in before) + (steps * self._part(stage) if stage is not None else 0.0)

    def _part(self, stage: Stage) -> float:
        return 1 / self._blocks if stage.name == RECONSTRUCTION else 1.0

"""The training itself: stages, steps, what is saved on the way, and when it is given up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.artifacts.journal import Journal
from quantkit.errors import TrainingDiverged
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.threads import TorchWorkers
from quantkit.training.gradients import Gradients
from quantkit.training.measuring import measured
from quantkit.training.objective import loss_of
from quantkit.training.options import TrainingOptions
from quantkit.training.processes import Processes
from quantkit.training.reconstruction import MAX_TOKENS, ResidualStreams
from quantkit.training.saved_state import Position, decoded, encoded
from quantkit.training.schedule import RECONSTRUCTION, Stage, rate_at, stages
from quantkit.training.sequences import TrainingText
from quantkit.training.speed import Speed
from quantkit.training.weights.optimizer import Optimizer
from quantkit.training.weights.student import Student, naive_model

STATE = "training"
"""What the journal calls the state."""
JUDGED = 20
"""Steps whose mean loss is held against that of guessing."""


@dataclass(frozen=True, slots=True, eq=False)
class Trainer:
    """One training; everything lies on `device`.

    original: the dense model. teacher: the module to learn from. own_teacher: whether that is `original`.
    """

    options: TrainingOptions
    original: Checkpoint
    start: Checkpoint
    student: Student
    teacher: MiniCPM
    own_teacher: bool
    text: TrainingText
    gradients: Gradients
    workers: TorchWorkers
    processes: Processes
    device: torch.device
    bfloat16: bool
    journal: Journal | None
    speed: Speed

    def run(self) -> Position:
        """Train to the end, from where a killed run with the same journal was.

        Raises:
            TrainingDiverged: the loss is no number, or worse than guessing.
            NoSpace, WriteFailed: the state cannot be saved.
        """
        position, moments = self._resumed()
        if not position.measured:
            position.measured["teacher"] = self._measure(self.teacher)
            position.measured["naive"] = self._measure(naive_model(self.original, self.start, self.device))
            position.measured["start"] = self._measure(self.student.module)
        planned = stages(self.options)
        self.speed.begin(planned, position)
        while position.stage < len(planned):
            stage = planned[position.stage]
            if stage.name == RECONSTRUCTION:
                self._reconstruct(stage, position)
            else:
                self._train(stage, position, moments)
            moments = {}
            position.measured[stage.name] = self._measure(self.student.module)
            position.stage, position.step = position.stage + 1, 0
            self._save(position, None)
        return position

    def _train(self, stage: Stage, position: Position, moments: dict[str, Tensor]) -> None:
        """All steps of a stage that trains the whole model."""
        optimizer = Optimizer(self.student, self.student.trained_names())
        if moments:
            optimizer.restore(moments, position.step)
        first = sum(before.steps for before in stages(self.options)[: position.stage] if before.name != RECONSTRUCTION)
        while position.step < stage.steps:
            rows = self._rows((first + position.step) * self.options.batch, self.options.batch)
            loss = self._step(stage, position.step, optimizer, rows, self._whole(stage))
            position.curve.append((len(position.curve), stage.name, loss))
            position.step += 1
            self._check(stage, position)
            self.speed.tell(stage, position.step, loss, rows.numel())
            if position.step % self.options.save_every == 0 and position.step < stage.steps:
                self._save(position, optimizer)

    def _whole(self, stage: Stage) -> Callable[[Tensor], Tensor]:
        return lambda rows: loss_of(stage, self.student.module, self.teacher if stage.teacher else None, rows)

    def _reconstruct(self, stage: Stage, position: Position) -> None:
        """All steps on every block that is not done."""
        batch = self.options.batch
        count = min(stage.steps * batch, max(batch, MAX_TOKENS // self.options.length), len(self.text))
        reference = self.teacher if self.own_teacher else load_model(self.original).to(self.device)
        rows = self._rows(0, count)
        streams = ResidualStreams(reference, self.student.module, rows, workers=self.workers, bfloat16=self.bfloat16)
        for block in range(self.original.spec.num_hidden_layers):
            streams.enter(block)
            if block >= position.step:
                for step, loss in enumerate(self._fit(stage, block, count, streams.loss(block))):
                    position.curve.append((len(position.curve), f"{stage.name}, block {block + 1}", loss))
                    self._check(stage, position)
                    self.speed.tell(stage, block * stage.steps + step + 1, loss, batch * rows.shape[1])
                position.step = block + 1
                self._save(position, None)
            streams.leave(block)

    def _fit(self, stage: Stage, block: int, count: int, loss: Callable[[Tensor], Tensor]) -> Iterator[float]:
        """The loss of every step on one block."""
        optimizer = Optimizer(self.student, self.student.trained_names(block))
        for step in range(stage.steps):
            places = (torch.arange(self.options.batch) + step * self.options.batch) % count
            yield self._step(stage, step, optimizer, places.to(self.device), loss)

    def _step(
        self, stage: Stage, step: int, optimizer: Optimizer, rows: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> float:
        """One step on `rows`, which `loss` understands; returns the loss before it."""
        names = optimizer.names
        found, gradients = self.gradients.mean(loss, rows, self.student.weights(names))
        self.student.backward(names, gradients)
        norm = optimizer.step(rate_at(step, stage.steps, self.options.warmup))
        if not (math.isfinite(found) and math.isfinite(norm)):
            raise self._diverged(stage, step, "the loss or its gradient is not a number")
        self.student.refresh(names)
        return found

    def _check(self, stage: Stage, position: Position) -> None:
        """Raise `TrainingDiverged` where the last steps are worse than a model that knows nothing."""
        name = position.curve[-1][1]
        last = [loss for _, other, loss in position.curve[-JUDGED:] if other == name]
        guessing = 1.0 if stage.name == RECONSTRUCTION else math.log(self.original.spec.vocab_size)
        if len(last) == JUDGED and sum(last) / JUDGED > guessing:
            reached = f"the loss, {sum(last) / JUDGED:.3g}, is worse than that of guessing, {guessing:.3g}"
            raise self._diverged(stage, position.step, reached)

    def _diverged(self, stage: Stage, step: int, what: str) -> TrainingDiverged:
        rate = self.options.learning_rate
        return TrainingDiverged(
            f"{stage.name} diverged at step {step + 1:,} of {stage.steps:,}, at learning rate {rate:g}: {what}",
            hint=f"a lower learning rate, such as {rate / 3:.1g}, or a longer warm-up",
        )

    def _rows(self, start: int, count: int) -> Tensor:
        return torch.from_numpy(self.text.rows(start, count)).to(self.device)

    def _measure(self, module: MiniCPM) -> dict[str, float]:
        return measured(
            module,
            self.teacher,
            self.text.held_out,
            workers=self.workers,
            processes=self.processes,
            device=self.device,
        )

    def _save(self, position: Position, optimizer: Optimizer | None) -> None:
        if self.journal is not None and self.processes.is_first:
            moments = optimizer.moments() if optimizer is not None else {}
            self.journal.save(STATE, encoded(position, {**self._parameters(), **moments}))

    def _parameters(self) -> dict[str, Tensor]:
        return {one.name: one.tensor for one in self.student.parameters(self.student.trained_names())}

    def _resumed(self) -> tuple[Position, dict[str, Tensor]]:
        """Where to begin, and the optimizer's moments there; the first process knows, the others are told."""
        saved = self.journal.saved(STATE) if self.journal is not None and self.processes.is_first else None
        position, tensors = decoded(saved) if saved is not None else (Position(), {})
        parameters = self._parameters()
        for name, tensor in parameters.items():
            if name in tensors:
                tensor.copy_(tensors.pop(name))
        found = torch.tensor([position.stage, position.step, len(tensors), len(position.curve)], device=self.device)
        self.processes.take_over([found, *self.student.state()])
        stage, step, moments, losses = found.tolist()
        if not self.processes.is_first:
            position = Position(stage, step, [(0, "", 0.0)] * losses, {"start": {}} if losses else {})
            tensors = Optimizer(self.student, self.student.trained_names()).moments() if moments else {}
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.processes.take_over(list(tensors.values()))
        self.student.refresh()
        return position, tensors

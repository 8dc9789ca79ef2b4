"""The stages of a training, and the learning rate on the way through each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantkit.training.options import DECOUPLED, JOINT, QAT, TrainingOptions

RECONSTRUCTION, QAT_STAGE, TEACHER_STAGE, JOINT_STAGE = "reconstruction", "QAT", "distillation", "QAT and distillation"


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps with one objective; of "reconstruction" they are taken on every block.

    text, teacher: how much cross-entropy on the text counts, and divergence from the teacher's predictions.
    """

    name: str
    steps: int
    text: float = 0.0
    teacher: float = 0.0


def stages(options: TrainingOptions) -> tuple[Stage, ...]:
    """The stages in order, those without steps left out."""
    text_steps = {DECOUPLED: round(options.qat * options.steps), QAT: options.steps}.get(options.objective, 0)
    found = [Stage(RECONSTRUCTION, options.reconstruction_steps)]
    if options.objective == JOINT:
        found.append(Stage(JOINT_STAGE, options.steps, text=0.5, teacher=0.5))
    else:
        found.append(Stage(QAT_STAGE, text_steps, text=1.0))
        found.append(Stage(TEACHER_STAGE, options.steps - text_steps, teacher=1.0))
    return tuple(stage for stage in found if stage.steps)


def rate_at(step: int, steps: int, warmup: float) -> float:
    """The learning rate's factor: it grows over a share of the steps, then falls by half a cosine to zero.

    Every stage warms up anew: "rewarm and decay", for models that were trained to the end before.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

"""What progress is told of a training."""

from __future__ import annotations

from quantkit.training.saved_state import Position
from quantkit.training.schedule import Stage
from quantkit.training.speed import Speed

RECONSTRUCTION, DISTILLATION = Stage("reconstruction", 10), Stage("distillation", 80, teacher=1.0)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_steps_loss_and_speed_are_told_with_the_share_that_is_done() -> None:
    told: list[tuple[str, float, float]] = []
    clock = Clock()
    speed = Speed(lambda *one: told.append(one), 4, clock)
    speed.begin((RECONSTRUCTION, DISTILLATION), Position())
    clock.seconds = 2.0
    speed.tell(RECONSTRUCTION, 20, 0.25, 4000)
    clock.seconds = 5.0
    speed.tell(DISTILLATION, 40, 0.01234567, 4000)
    assert told == [
        ("reconstruction", 0, 90),
        ("reconstruction 20 of 40, loss 0.25, 500 tokens/s", 5, 90),
        ("distillation 40 of 80, loss 0.01235, 1,000 tokens/s", 50, 90),
    ]


def test_a_resumed_training_begins_where_it_was() -> None:
    told: list[tuple[str, float, float]] = []
    stages = (RECONSTRUCTION, DISTILLATION)
    for position in (Position(0, 2), Position(1, 30), Position(2, 0)):
        Speed(lambda *one: told.append(one), 4).begin(stages, position)
    assert told == [("reconstruction", 5, 90), ("distillation", 40, 90), ("training", 90, 90)]

"""The stages of a training, the learning rate on the way, and the options that decide both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantkit.errors import BadOption
from quantkit.training.schedule import Stage, rate_at, stages
from tests.support.trainings import OPTIONS


def test_every_objective_spends_all_steps() -> None:
    options = replace(OPTIONS, steps=100, qat=0.3, reconstruction=0.1)
    assert stages(options) == (
        Stage("reconstruction", 10),
        Stage("QAT", 30, text=1.0),
        Stage("distillation", 70, teacher=1.0),
    )
    assert stages(replace(options, objective="distillation"))[1:] == (Stage("distillation", 100, teacher=1.0),)
    assert stages(replace(options, qat=0.0, reconstruction=0.0)) == (Stage("distillation", 100, teacher=1.0),)
    assert stages(replace(options, objective="qat"))[1:] == (Stage("QAT", 100, text=1.0),)
    assert stages(replace(options, objective="joint"))[1:] == (
        Stage("QAT and distillation", 100, text=0.5, teacher=0.5),
    )


def test_the_learning_rate_rises_once_and_falls_to_zero() -> None:
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert rates[55] == pytest.approx(0.5)
    assert [rate_at(step, 1, warmup) for step in range(1) for warmup in (0.0, 0.1, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "training steps must be from 1 to"),
        ({"length": 1}, "training length must be from 2 to"),
        ({"batch": 0}, "training batch must be from 1 to"),
        ({"batch": 4, "micro_batch": 3}, "a batch of 4 sequences is not a multiple of the micro-batch of 3"),
        ({"qat": 1.5}, "training qat must be from 0 to 1, is 1.5"),
        ({"learning_rate": float("nan")}, "training learning_rate must be from 0 to 10, is nan"),
        ({"objective": "both"}, "training objective must be one of distillation, decoupled, joint, qat, is 'both'"),
        ({"scales": "fixed"}, "training scales must be one of learned, derived"),
        ({"dense": "some"}, "training dense must be one of frozen, norms, all"),
        ({"files": ()}, "there is no text to train on"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        replace(OPTIONS, **changes)

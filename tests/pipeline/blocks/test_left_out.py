"""Judged by what was left out: strength, damping, and whether codes are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantkit.calibration.activations import Stage
from quantkit.calibration.drift import Drift
from quantkit.calibration.statistics import LayerStatistics
from quantkit.methods.gptq import Gptq
from quantkit.models.spec import Role
from quantkit.pipeline.blocks.layer_group import StageSolver
from quantkit.pipeline.blocks.left_out import LeftOut, Task
from quantkit.protocols import TensorReport
from quantkit.solver.stages import Stages
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.schemes.affine_groups import AffineGroups

INT3 = AffineGroups(bits=3, group_size=32)
COLS, ROWS = 64, 48


def inputs(seed: int, tokens: int, *, rank: int = 8) -> torch.Tensor:
    """Inputs that mostly lie in a space of few dimensions, another one for every seed."""
    rng = np.random.default_rng(seed)
    strong = rng.standard_normal((tokens, rank)) @ rng.standard_normal((rank, COLS)) * 3
    return torch.from_numpy(strong + rng.standard_normal((tokens, COLS))).float()


def stage(*seen: torch.Tensor, missing: tuple[torch.Tensor, ...] | None = None) -> Stage:
    """One layer's inputs by fold, and what its outputs lack."""
    folds = tuple(LayerStatistics(x.T @ x, len(x)) for x in seen)
    drift = None if missing is None else Drift(tuple(d.T @ x for d, x in zip(missing, seen, strict=True)), False)
    return Stage((Role.O,), tuple(f"fold {number}" for number in range(len(seen))), folds, drift)


def weight() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(9).standard_normal((ROWS, COLS))).float()


def solved(given: Stage, method: Gptq, *, turn: int = 0) -> tuple[np.ndarray, TensorReport]:
    tensor, report = StageSolver(given, 1, turn).quantized({"w": Task(weight(), INT3, method)})["w"]
    return tensor.codes, report


def strength(given: Stage) -> float | None:
    left_out = LeftOut(given, LayerStatistics.of_all(given.folds), {"w": Task(weight(), INT3, Gptq())}, 1)
    return left_out.strengths["w"]


def test_what_all_sources_lack_alike_is_made_up_for_in_full() -> None:
    seen = [inputs(seed, 900) for seed in range(3)]
    lost = torch.from_numpy(np.random.default_rng(4).standard_normal((ROWS, COLS))).float() / 8
    found = strength(stage(*seen, missing=tuple(x @ lost.T for x in seen)))
    assert found is not None
    assert 0.95 < found <= 1


def test_what_each_source_lacks_in_its_own_way_is_not_made_up_for() -> None:
    """Within each source the regression would explain all of it."""
    seen = [inputs(7, 300) for _ in range(3)]
    rng = np.random.default_rng(5)
    lost = torch.from_numpy(rng.standard_normal((3, ROWS, COLS))).float() / 8
    lost -= lost.mean(0)
    assert strength(stage(*seen, missing=tuple(x @ part.T for x, part in zip(seen, lost, strict=True)))) == 0


def test_codes_that_lose_on_every_source_left_out_give_way_to_rounding() -> None:
    """Each source has one direction, and error feedback for the others pushes what is lost into it."""
    method = Gptq(Stages(damping=1e-4, search=False))
    seen = [inputs(seed, 6, rank=2) for seed in range(3)]
    codes, report = solved(stage(*seen), method)
    assert report.fallback == "it lost to round-to-nearest on text left out"
    assert (codes == round_to_nearest(weight().numpy(), INT3).codes).all()


def test_codes_that_gain_are_kept_and_their_errors_reported() -> None:
    seen = [inputs(3, 700) for _ in range(2)]
    _, report = solved(stage(*seen), Gptq(), turn=5)
    assert report.fallback is None
    assert report.left_out == "fold 1"
    for error in (report.error_with, report.error_without):  # the folds are the same, and every row stands for itself
        assert error == pytest.approx(report.error, rel=1e-3)


def test_the_damping_that_serves_the_source_left_out_is_taken() -> None:
    few, many = [inputs(seed, 20) for seed in range(3)], [inputs(3, 2000) for _ in range(3)]
    stages = Stages(damping=1e-3)
    chooser, light, heavy = Gptq(stages, (1.0,)), Gptq(stages), Gptq(replace(stages, damping=1.0))
    for seen, expected in ((few, heavy), (many, light)):
        assert (solved(stage(*seen), chooser)[0] == solved(stage(*seen), expected)[0]).all()
    assert (solved(stage(*few), light)[0] != solved(stage(*few), heavy)[0]).any()


def test_a_single_fold_judges_nothing() -> None:
    _, report = solved(stage(inputs(1, 6, rank=2)), Gptq(Stages(damping=1e-4, search=False)))
    assert (report.left_out, report.error_without, report.fallback) == (None, None, None)

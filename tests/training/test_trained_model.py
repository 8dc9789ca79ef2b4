"""A whole training: it recovers, it is the same every time, and it stops with one line when it must."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.calibration.compute import Compute
from quantkit.errors import BadOption, TrainingDiverged, UnsupportedSpec
from quantkit.models.loading import load_model
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.training import trainer
from quantkit.training.processes import Processes
from quantkit.training.trained_model import Trained, train
from tests.support.memory import memory_checkpoint
from tests.support.trainings import ONE_THREAD, OPTIONS, digests, journal_in, original, random_text, trained


@pytest.fixture(scope="module")
def usual() -> Trained:
    return trained()


@pytest.mark.parametrize("scheme", [None, AffineGroups(bits=3, group_size=32, symmetric=False)])
def test_a_training_recovers_what_rounding_lost(usual: Trained, scheme: AffineGroups | None) -> None:
    found = usual if scheme is None else trained(scheme=scheme)
    before, after = found.report["measured"]["start"], found.report["measured"]["distillation"]
    assert after["kl"] < 0.9 * before["kl"]
    losses = [loss for _, stage, loss in found.report["curve"] if stage == "distillation"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_the_result_predicts_what_was_measured(usual: Trained) -> None:
    """The exported codes and norms, read as any model, give the measured perplexity."""
    arrays = {name: weight.read() for name, weight in original().weights.items()}
    model = load_model(memory_checkpoint(original().config, {**arrays, **usual.dense, **usual.tensors}))
    rows = torch.from_numpy(random_text(original()).held_out)
    logs = model(rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None])
    measured = usual.report["measured"]["distillation"]["perplexity"]
    assert float((-logs.mean()).exp()) == pytest.approx(measured, rel=1e-5)


def test_the_stages_are_those_of_the_objective(usual: Trained) -> None:
    def names(found: Trained) -> list[str]:
        return list(dict.fromkeys(stage for _, stage, _ in found.report["curve"]))

    blocks = ["reconstruction, block 1", "reconstruction, block 2"]
    assert names(usual) == [*blocks, "QAT", "distillation"]
    assert [step for step, _, _ in usual.report["curve"]] == list(range(2 * 3 + 12))
    assert names(trained(objective="joint", reconstruction=0)) == ["QAT and distillation"]
    assert names(trained(objective="qat", reconstruction=0)) == ["QAT"]
    assert json.loads(json.dumps(usual.report)) == usual.report


def test_blocks_are_fitted_to_the_model_itself_whoever_teaches(usual: Trained) -> None:
    found = trained(teacher=original(seed=1))
    fitted = [point for point in usual.report["curve"] if point[1].startswith("reconstruction")]
    assert [point for point in found.report["curve"] if point[1].startswith("reconstruction")] == fitted
    assert found.report["measured"]["start"]["kl"] > 2 * usual.report["measured"]["start"]["kl"]


def test_latent_weights_begin_at_the_smoothed_original() -> None:
    """The smoothing of these tests is by powers of two, so that naive rounding does not notice it."""
    measured = trained(scales="derived", steps=1).report["measured"]
    assert measured["start"] == pytest.approx(measured["naive"], rel=1e-5)


def test_no_number_of_threads_changes_a_bit(usual: Trained) -> None:
    assert digests(trained(compute=replace(ONE_THREAD, threads=3))) == digests(usual)


def test_a_seed_orders_the_text(usual: Trained) -> None:
    assert digests(trained()) == digests(usual)
    assert digests(trained(seed=1)) != digests(usual)


@pytest.mark.parametrize("saves", [1, 6])
def test_a_killed_training_goes_on_to_the_same_weights(usual: Trained, tmp_path: Path, saves: int) -> None:
    """Killed in the reconstruction, and within a stage."""
    command = [sys.executable, "-m", "tests.support.trainings", str(tmp_path), str(saves)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    begun: list[str] = []

    class Watched(trainer.Trainer):
        def _step(self, stage, step, *arguments):
            begun.append(f"{stage.name} {step}")
            return super()._step(stage, step, *arguments)

    with pytest.MonkeyPatch.context() as patch, journal_in(tmp_path) as journal:
        patch.setattr("quantkit.training.trained_model.Trainer", Watched)
        found = trained(journal=journal)
    assert digests(found) == digests(usual)
    assert found.report == usual.report
    assert len(begun) == 2 * 3 + 12 - {1: 3, 6: 12}[saves]
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    changes = {"steps": 2, "save_every": 1, "reconstruction": 0}
    with pytest.raises(OSError, match="power"), journal_in(tmp_path) as journal:
        trained(journal=journal, **changes)
        raise OSError("power")
    with journal_in(tmp_path, b"other key") as journal:
        assert journal.saved("training") is None
        assert digests(trained(journal=journal, seed=1, **changes)) == digests(trained(seed=1, **changes))


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(usual: Trained, tmp_path: Path) -> None:
    """Each takes half of every step: the same sums, added in another order."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*command, "-m", "tests.support.trainings", str(tmp_path)], check=True, capture_output=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert [point[:2] for point in found["curve"]] == [point[:2] for point in usual.report["curve"]]
    ours, theirs = (np.array([loss for _, _, loss in report["curve"]]) for report in (usual.report, found))
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert found["measured"]["distillation"]["kl"] == pytest.approx(
        usual.report["measured"]["distillation"]["kl"], rel=1e-3
    )


@pytest.mark.parametrize("changes", [{"learning_rate": 10.0, "scale_rate": 10.0, "dense": "all", "dense_rate": 10.0}])
def test_a_training_that_diverges_is_stopped(changes: dict[str, float]) -> None:
    with pytest.raises(TrainingDiverged, match=r"diverged at step \d+ of 60, at learning rate 10: the loss") as caught:
        trained(objective="qat", reconstruction=0, steps=60, **changes)
    assert "a lower learning rate, such as 3" in str(caught.value.hint)


def test_a_loss_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trainer, "loss_of", lambda _, module, *rest: module.head(module.states(rest[1])).sum() * torch.nan
    )
    with pytest.raises(
        TrainingDiverged, match=r"QAT diverged at step 1 of 4, .*: the loss or its gradient is not a num"
    ):
        trained(reconstruction=0)


def test_what_cannot_be_trained_is_refused() -> None:
    model = original()
    with pytest.raises(BadOption, match="no weight of it is quantized"):
        train(model, model, random_text(model), OPTIONS)
    with pytest.raises(BadOption, match="5 processes cannot share 4 micro-batches"):
        trained(processes=Processes(0, 5))
    with pytest.raises(UnsupportedSpec, match=r"model.layers.0.self_attn.q_proj.weight: training knows"):
        trained(scheme=OffsetGroups(bits=4, group_size=32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(BadOption, match="sees no CUDA device here"):
        trained(compute=Compute(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_as_well(usual: Trained) -> None:
    found = trained(compute=Compute(device="cuda", bfloat16=False))
    for stage, measured in usual.report["measured"].items():
        assert found.report["measured"][stage]["kl"] == pytest.approx(measured["kl"], rel=0.02)

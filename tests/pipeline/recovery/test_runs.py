"""Recovery runs, from a folder to a folder: what is written is what was trained, and a killed run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.artifacts.journal import Journal
from quantkit.artifacts.publishing import Published
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions
from quantkit.errors import BadOption, OutputExists, UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import read_float32
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.recovery.runs import recover
from quantkit.pipeline.runs import quantize
from quantkit.registry import open_checkpoint
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import TERNARY, AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView
from quantkit.training.options import TrainingOptions
from quantkit.training.trained_model import Trained
from quantkit.verification.proof import verify
from tests.support.faults import content
from tests.support.outliers import outlier_arrays
from tests.support.quantized_models import BF16
from tests.support.tiny import write_tensors, write_tiny_checkpoint

INT4_ROW = AffineGroups(bits=4, group_size=-1)
CALIBRATION = CalibrationOptions(sequences=4, length=32)
COMPUTE = Compute(bfloat16=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, golden_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("recovery") / "model"
    write_tiny_checkpoint(folder, layers=2, hidden=64, intermediate=96, vocab=2048)
    for file in golden_model.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def outlying(model: Path, tmp_path: Path) -> Path:
    """A model that smoothing changes."""
    folder = tmp_path / "outlying"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    write_tensors(folder, outlier_arrays(config, dtype=BF16), shards=2)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(f"line {i} says {i * i} of itself" for i in range(300)))
    return file


def run(
    model: Path,
    text: Path,
    out: Path,
    *,
    method: str = "rtn",
    scheme: Scheme = TERNARY,
    arch: str = "native",
    **changes: Any,
) -> Published:
    settings: dict[str, Any] = {
        "objective": "decoupled",
        "steps": 4,
        "length": 24,
        "batch": 2,
        "reconstruction": 0.5,
        "held_out": 2,
        "save_every": 1,
    }
    training = TrainingOptions(files=(text,), **{**settings, **changes})
    options = QuantizeOptions(method=method, scheme=scheme, calibration=CALIBRATION)
    done = recover(model, out, options, training, compute=COMPUTE, arch=arch)
    assert done is not None
    return done


@pytest.mark.parametrize("arch", ["native", "llama"])
def test_what_is_written_is_what_was_trained(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    made: list[Trained] = []

    def watched(*arguments: Any, **settings: Any) -> Trained:
        made.append(train(*arguments, **settings))
        return made[-1]

    from quantkit.training.trained_model import train  # noqa: PLC0415

    monkeypatch.setattr("quantkit.pipeline.recovery.recovery.train", watched)
    done = run(model, text, tmp_path / "out", arch=arch)
    (trained,) = made
    found, source = open_checkpoint(tmp_path / "out"), open_checkpoint(model)
    for name, weight in found.weights.items():
        if isinstance(weight, QuantizedView):
            assert weight.read().numbers_digest() == trained.tensors[name].numbers_digest()
        elif name in trained.dense:
            np.testing.assert_array_equal(weight.read().astype(np.float32), trained.dense[name].astype(np.float32))
            assert (weight.read() != source.weights[name].read()).any()
    report = done.manifest["report"]
    stages = {"teacher", "naive", "start", "reconstruction", "QAT", "distillation"}
    assert report["training"]["measured"].keys() == stages
    assert report["training"]["curve"][-1][:2] == [2 * 2 + 4 - 1, "distillation"]
    assert verify(tmp_path / "out", against=model, engine="none").passed


@pytest.mark.parametrize("method", ["rtn", "ternary"])
def test_a_run_that_was_stopped_goes_on(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run(model, text, tmp_path / "whole", method=method)
    saves: list[str] = []
    save, keep = Journal.save, Journal.keep

    def stopping(journal: Journal, name: str, parts: Sequence[bytes | memoryview]) -> None:
        save(journal, name, parts)
        saves.append(name)
        if len(saves) == 4:
            raise OSError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", stopping)
        with pytest.raises(OSError, match="power"):
            run(model, text, tmp_path / "out", method=method)
        assert not (tmp_path / "out").exists()
    kept: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", lambda journal, name, parts: kept.append(name))
        patch.setattr(Journal, "keep", lambda journal, name, data: (kept.append(name), keep(journal, name, data))[0])
        run(model, text, tmp_path / "out", method=method)
    assert [name for name in kept if name != "samples"] == ["training"] * 3, (
        "blocks and the first steps are not done again"
    )
    wanted = content(tmp_path / "whole")
    assert {name: data for name, data in wanted.items() if name.startswith("out/")} == {
        f"out/{name.removeprefix('whole/')}": data for name, data in wanted.items() if name.startswith("whole/")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


@pytest.mark.parametrize("smooth", [False, True])
def test_a_training_that_loses_leaves_what_was_quantized(model: Path, text: Path, tmp_path: Path, smooth: bool) -> None:
    """Also the norms that smoothing has changed, and those that training leaves alone."""
    options = QuantizeOptions(method="gptq", scheme=INT4_ROW, calibration=CALIBRATION, smooth=smooth)
    quantize(model, tmp_path / "start", options, compute=COMPUTE)
    for name, changes in {"lost": {"learning_rate": 9.0}, "frozen": {"dense": "frozen", "learning_rate": 0.0}}.items():
        training = TrainingOptions(files=(text,), steps=2, length=24, batch=2, scale_rate=0.0, held_out=2, **changes)
        done = recover(model, tmp_path / name, options, training, compute=COMPUTE)
        assert done is not None
        assert done.manifest["report"]["training"]["kept_start"] == (name == "lost")
        begun, found = open_checkpoint(tmp_path / "start"), open_checkpoint(tmp_path / name)
        for weight, other in zip(begun.weights.values(), found.weights.values(), strict=True):
            assert read_float32(weight).tobytes() == read_float32(other).tobytes(), weight.name


def test_a_smoothed_model_is_trained_and_proved(
    outlying: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.training.trained_model import train  # noqa: PLC0415

    def watched(original: Checkpoint, start: Checkpoint, *arguments: Any, **settings: Any) -> Trained:
        norm, matrix = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
        ratio = read_float32(original.weights[norm]) / read_float32(start.weights[norm])
        wanted = read_float32(original.weights[matrix]) * ratio
        assert len(np.unique(ratio)) > 1
        np.testing.assert_allclose(read_float32(settings["smoothed"].weights[matrix]), wanted, rtol=1e-6)
        return train(original, start, *arguments, **settings)

    monkeypatch.setattr("quantkit.pipeline.recovery.recovery.train", watched)
    options = QuantizeOptions(method="awq", scheme=INT4_ROW, calibration=CALIBRATION)
    training = TrainingOptions(files=(text,), steps=2, length=24, batch=2, dense_rate=0.03, held_out=0)
    done = recover(outlying, tmp_path / "out", options, training, compute=COMPUTE)
    assert done is not None
    assert done.manifest["report"]["weights"]["norms"]
    assert verify(tmp_path / "out", against=outlying, engine="none").passed


def test_what_cannot_be_done_is_refused_before_any_work(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UnsupportedSpec, match=r"^model.layers.0.self_attn.q_proj.weight: training knows evenly spaced"):
        run(model, text, out, scheme=OffsetGroups(bits=4, group_size=32))
    with pytest.raises(BadOption, match="tokens of text do not fill one sequence of 900"):
        empty = tmp_path / "empty.txt"
        empty.write_text("nothing much")
        run(model, empty, out, length=900)
    with pytest.raises(BadOption, match="sequences of 100,000 tokens exceed the model's context"):
        run(model, text, out, length=100_000)
    with (
        monkeypatch.context() as patch,
        pytest.raises(BadOption, match=r"training needs about 0\.. GB of memory; this"),
    ):
        patch.setattr("quantkit.pipeline.recovery.work.machine_memory", lambda: 100 << 20)
        run(model, text, out)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputExists):
        run(model, text, out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_another_teacher_is_another_run(model: Path, text: Path, tmp_path: Path) -> None:
    teacher = write_tiny_checkpoint(tmp_path / "teacher", layers=1, hidden=128, vocab=2048, seed=3)
    for file in model.glob("*token*"):
        shutil.copy(file, teacher)
    options = QuantizeOptions(method="rtn", scheme=TERNARY)
    training = TrainingOptions(files=(text,), steps=2, length=24, batch=2, held_out=2)
    done = recover(model, tmp_path / "out", options, training, teacher=teacher, compute=COMPUTE)
    assert done is not None
    assert done.manifest["report"]["training"]["teacher"] == "teacher"
    small = write_tiny_checkpoint(tmp_path / "small", layers=1, hidden=64, intermediate=96, vocab=300)
    with pytest.raises(BadOption, match="the teacher has 300 tokens, the model 2,048"):
        recover(model, tmp_path / "none", options, replace(training, steps=3), teacher=small, compute=COMPUTE)


@pytest.mark.slow
def test_several_processes_make_one_model(model: Path, text: Path, tmp_path: Path) -> None:
    """The first one quantizes, publishes and speaks; the losses are those of one process."""
    settings = {
        "--method": "rtn",
        "--bits": "2",
        "--group-size": "32",
        "--recover": "3",
        "--train-length": "24",
        "--batch": "2",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "quantkit"]
    arguments = [str(part) for pair in settings.items() for part in pair]
    quantize = ["quantize", str(model), "--text", str(text), "--no-bfloat16", "--threads", "1", "--json", *arguments]
    done = subprocess.run(
        [*command, *quantize, "--out", str(tmp_path / "two")], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)["report"]["training"]
    assert found["processes"] == 2
    assert open_checkpoint(tmp_path / "two").holds_codes
    usual = TrainingOptions(files=(text,), steps=3)
    one = run(
        model,
        text,
        tmp_path / "one",
        scheme=AffineGroups(bits=2, group_size=32),
        objective=usual.objective,
        steps=usual.steps,
        reconstruction=usual.reconstruction,
        held_out=usual.held_out,
    )
    wanted = one.manifest["report"]["training"]["curve"]
    np.testing.assert_allclose([loss for *_, loss in found["curve"]], [loss for *_, loss in wanted], rtol=1e-4)

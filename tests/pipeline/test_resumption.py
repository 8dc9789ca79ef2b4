"""Runs that were stopped and go on: the same bytes, nothing done twice, and nothing recalled that does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import preflight
from quantkit.calibration.autocast import has_bfloat16_products
from quantkit.calibration.samples import CalibrationOptions
from quantkit.cli.app import main
from quantkit.errors import Interrupted, NonFiniteValues, NoSpace, OutputExists
from quantkit.methods import rtn
from quantkit.methods.gptq import Gptq
from quantkit.pipeline.blocks.block_stream import BlockStream
from quantkit.protocols import ExportOptions
from quantkit.solver.stages import Stages
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.faults import ROOT, content
from tests.support.killed_runs import BLOCKS, QUICK, SPEC, quantize, sequences, write_model
from tests.support.outliers import outlier_model, token_samples
from tests.support.runs import quantized
from tests.support.stopped_runs import STEPS, stop, stopping, work


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("resume") / "model")


@pytest.fixture(scope="module")
def wanted(model: Path) -> dict[str, bytes]:
    """Every byte that a run gives which nothing disturbs."""
    out = model.parent / "undisturbed" / "out"
    out.parent.mkdir()
    quantize(model, out)
    return content(out)


@pytest.fixture(scope="module")
def finished(model: Path) -> Path:
    """What a run leaves that was stopped when all its blocks were finished; read only."""
    out = model.parent / "stopped" / "out"
    out.parent.mkdir()
    stop(model, out, len(STEPS))
    return work(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def stopped(finished: Path, out: Path) -> Path:
    """An output whose run was stopped when all its blocks were finished."""
    shutil.copytree(finished, work(out))
    return out


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are solved from now on."""
    layers: list[int] = []
    solve = BlockStream._solve

    def counted(stream: BlockStream, *blocks: object) -> object:
        layers.append(stream.layer)
        return solve(stream, *blocks)

    monkeypatch.setattr(BlockStream, "_solve", counted)
    return layers


def test_a_run_killed_anywhere_gives_the_same_bytes_and_does_at_most_one_block_again() -> None:
    command = [sys.executable, "-m", "tests.support.killed_runs"]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1))
def test_no_finished_block_is_solved_again(
    model: Path, out: Path, wanted: dict[str, bytes], solved: list[int], steps: int
) -> None:
    error = stop(model, out, steps)
    assert str(error) == "interrupted; nothing was published"
    assert error.hint == "run the same command again to continue"  # type: ignore[attr-defined]
    quantize(model, out, threads=2)
    assert content(out) == wanted
    assert solved == list(range(BLOCKS))


def test_a_smoothed_run_goes_on_with_the_scales_that_it_chose(out: Path, solved: list[int]) -> None:
    options = {"smooth": True, "spec": replace(SPEC, bits=4), "calibration": token_samples(*[24] * 9)}
    source = outlier_model(dtype=np.float16, num_hidden_layers=BLOCKS)
    whole = out.parent / "whole" / "out"
    whole.parent.mkdir()
    run = quantize(source, whole, **options)  # type: ignore[arg-type]
    assert any(entry["smoothing"] for entry in run.report()["tensors"].values())
    for steps in (2, 4):
        out = out.parent / str(steps) / "out"
        out.parent.mkdir()
        solved.clear()
        stop(source, out, steps, **options)  # type: ignore[arg-type]
        kept = sum(path.stat().st_size for path in work(out).iterdir()) if steps == len(STEPS) else None
        again = quantize(source, out, **options)  # type: ignore[arg-type]
        assert solved == list(range(BLOCKS))
        assert content(out) == content(whole)
        assert again.report() == run.report()
        assert kept is None or again.journal_size() - 1000 < kept < again.journal_size() + 20_000


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the digest": lambda path: flip(path, 3),
    "the first byte": lambda path: flip(path, 65),
    "the last byte": lambda path: flip(path, -1),
    "truncated": lambda path: os.truncate(path, 100),
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
    "another step's": lambda path: (path.write_bytes((path.parent / STEPS[3]).read_bytes()), None)[1],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_block_is_solved_again(
    model: Path, stopped: Path, wanted: dict[str, bytes], solved: list[int], damage: Callable[[Path], None]
) -> None:
    damage(work(stopped) / STEPS[2])
    quantize(model, stopped)
    assert solved == [1]
    assert content(stopped) == wanted


CHANGES: dict[str, dict[str, object]] = {
    "bits": {"spec": AffineGroups(bits=4, group_size=32, symmetric=False)},
    "scale dtype": {"spec": AffineGroups(bits=3, group_size=32, symmetric=False, scale_dtype="float32")},
    "method settings": {"method": Gptq(Stages(search=False, rounds=1))},
    "skipped positions": {"skip_positions": 3},
    "smoothing": {"smooth": True},
    "precision": {"bfloat16": not has_bfloat16_products()},
    "sequences": {"calibration": sequences(6)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_changed_option_starts_afresh(
    model: Path, stopped: Path, solved: list[int], changes: dict[str, object]
) -> None:
    kept = content(work(stopped))
    with pytest.raises(OutputExists, match=r"was stopped and has left 4 finished steps, .*other") as refusal:
        quantize(model, stopped, **changes)  # type: ignore[arg-type]
    assert "continue it, or --overwrite to throw its work away" in (refusal.value.hint or "")
    assert content(work(stopped)) == kept
    quantize(model, stopped, discard=True, **changes)  # type: ignore[arg-type]
    assert solved == list(range(BLOCKS))
    assert [path.name for path in stopped.parent.iterdir()] == ["out"]


def test_a_changed_model_starts_afresh_and_a_moved_one_goes_on(
    model: Path, finished: Path, tmp_path: Path, wanted: dict[str, bytes], solved: list[int]
) -> None:
    out = tmp_path / "out"
    other, same = write_model(tmp_path / "other", seed=1), shutil.copytree(model, tmp_path / "same")
    shutil.copytree(finished, work(out))
    quantize(other, out, discard=True)
    assert solved == list(range(BLOCKS))
    solved.clear()
    shutil.rmtree(out)
    shutil.copytree(finished, work(out))
    quantize(same, out)
    assert solved == []
    assert {name: data for name, data in content(out).items() if name in wanted} == wanted


def test_text_that_the_model_wrote_is_not_written_again(
    golden_model: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "source" / "model", vocab=2048)
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        shutil.copy(golden_model / name, model)
    options = CalibrationOptions(sequences=2, length=16)
    quantize(model, tmp_path / "source" / "out", calibration=options)
    wanted = content(tmp_path / "source" / "out")["out/model.safetensors"]
    with stopping(2, KeyboardInterrupt), pytest.raises(Interrupted):
        quantize(model, out, calibration=options)

    def explode(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    with monkeypatch.context() as patch:
        patch.setattr("quantkit.calibration.sources.own_text", explode)
        quantize(model, out, calibration=options)
        assert (out / "model.safetensors").read_bytes() == wanted
        with pytest.raises(AssertionError, match="generated again"):
            quantize(model, tmp_path / "fresh", calibration=options)


def test_nothing_is_kept_where_going_on_makes_no_sense(tmp_path: Path, out: Path, model: Path) -> None:
    quantize(model, out, method=rtn.METHOD)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(out)
    with stopping(2, NonFiniteValues), pytest.raises(NonFiniteValues):  # an error of the input comes again
        quantize(model, out)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_the_system_says_how_to_go_on(out: Path, model: Path, solved: list[int]) -> None:
    error = stop(model, out, 3, NoSpace)
    assert error.hint == "run the same command again to continue"  # type: ignore[attr-defined]
    quantize(model, out)
    assert solved == list(range(BLOCKS))


def test_the_command_goes_on_where_it_was_interrupted(
    golden_model: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], solved: list[int]
) -> None:
    model = write_model(tmp_path / "model", vocab=2048)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(golden_model / name, model)
    options = ["--group-size", "32", "--samples", "2", "--length", "16", "--threads", "1"]
    with stopping(2, KeyboardInterrupt):
        assert main(["quantize", str(model), *options, "--out", str(out)]) == 130
    expected = "error: interrupted; nothing was published (hint: run the same command again to continue)\n"
    assert capsys.readouterr().err.endswith(expected)
    assert main(["quantize", str(model), *options, "--bits", "3", "--out", str(out)]) == 2
    refusal = capsys.readouterr().err
    assert "gptq int4 g32 sym was stopped and has left 3 finished steps" in refusal
    assert "--overwrite to throw its work away" in refusal
    assert main(["quantize", str(model), *options, "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "going on with what a run that was stopped has finished: 3 steps" in told
    assert "2 steps were finished before by a run that was stopped" in told
    assert main(["quantize", str(model), *options, "--out", str(tmp_path / "whole")]) == 0
    assert solved == [*range(BLOCKS)] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "whole"}
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_the_disk_must_hold_the_journal_as_well(
    model: Path, finished: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = registry.open_checkpoint(model)
    run = quantized(checkpoint, SPEC, QUICK, calibration=sequences())
    planned = registry.exporter("compressed-tensors").prepare(run.checkpoint, ExportOptions())
    size = run.journal_size()
    for free in range(planned.size, 4 * planned.size + (4 << 20), 10_000):
        monkeypatch.setattr(os, "statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=9))
        try:
            preflight(planned, out)
        except NoSpace:
            continue
        break
    with pytest.raises(NoSpace, match="out: needs"):
        preflight(planned, out, journal_size=size)
    monkeypatch.undo()
    shutil.copytree(finished, work(out))
    kept = sum(path.stat().st_size for path in work(out).iterdir())
    assert size < kept < size + 20_000
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=9))
    preflight(planned, out, journal_size=size)  # what a stopped run left is not needed a second time

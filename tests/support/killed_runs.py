"""Quantization runs that are killed and started again: `python -m tests.support.killed_runs FOLDER`.

Deaths are played in forks of a fresh process, see `tests.support.faults`.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import clean_up, publish
from quantkit.calibration.samples import CalibrationOptions, Samples, make_samples
from quantkit.files.planned_files import PlannedArtifact
from quantkit.methods.gptq import Gptq
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.blocks.block_stream import BlockStream
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import ExportOptions, Method
from quantkit.solver.stages import Stages
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.faults import AtCall, content, die, forked, instrument, memory_folder
from tests.support.runs import quantized
from tests.support.tiny import write_tiny_checkpoint

SPEC = AffineGroups(bits=3, group_size=32, symmetric=False)
QUICK = Gptq(Stages(search=False, rounds=0))
BLOCKS = 3
CALLS = ("fsync", "mkdir", "replace", "rmdir", "_renameat2")
"""Where a run is killed: before each of these it has just finished something."""


def sequences(seed: int = 5) -> Samples:
    """Calibration sequences of different lengths."""
    rng = np.random.default_rng(seed)
    return make_samples([rng.integers(0, 300, length) for length in (33, 40, 7)], source="text", digest="0" * 64)


def write_model(folder: Path, *, seed: int = 0, vocab: int = 300, layers: int = BLOCKS) -> Path:
    """A random model of small blocks."""
    return write_tiny_checkpoint(folder, layers=layers, hidden=64, intermediate=96, vocab=vocab, seed=seed)


def quantize(
    model: Path | Checkpoint,
    out: Path,
    *,
    spec: AffineGroups = SPEC,
    method: Method = QUICK,
    calibration: Samples | CalibrationOptions | None = None,
    threads: int = 1,
    skip_positions: int = 4,
    smooth: bool | None = None,
    bfloat16: bool | None = None,
    discard: bool = False,
) -> Quantization:
    """What the command does, as one call."""
    checkpoint = registry.open_checkpoint(model) if isinstance(model, Path) else model
    run = quantized(
        checkpoint,
        spec,
        method,
        calibration=calibration or sequences(),
        threads=threads,
        skip_positions=skip_positions,
        smooth=smooth,
        bfloat16=bfloat16,
    )
    planned = registry.exporter("compressed-tensors").prepare(run.checkpoint, ExportOptions())
    with run.journal(planned, out, discard=discard):
        run.calibrate()
        publish(planned, out, inputs=checkpoint.inputs, report=run.report)
    return run


def sweep(base: Path) -> int:
    """Kill a run before its first call, its second, ... until one lives; return the number of deaths."""
    model, out, solved = write_model(base / "model", layers=2), base / "area" / "out", base / "solved"
    solve = BlockStream._solve

    def counted(stream: BlockStream, *blocks: object) -> object:
        with solved.open("ab") as file:
            file.write(b"x")
        return solve(stream, *blocks)

    BlockStream._solve = counted

    def dying(k: int) -> None:
        at = AtCall(k, die)
        instrument(lambda name: at(name) if name in CALLS else None, setattr)
        quantize(model, out)

    def fresh() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        solved.write_bytes(b"")

    fresh()
    quantize(model, out)  # in this process, so that all modules are loaded before it forks
    wanted = content(out)
    for k in range(1, 200):
        fresh()
        status = forked(lambda k=k: dying(k))
        if status == 0:
            return k - 1
        assert status == signal.SIGKILL, status
        if not out.exists():
            assert forked(lambda: quantize(model, out) and None) == 0
            assert {path.name for path in out.parent.iterdir()} == {"out"}, list(out.parent.iterdir())
        else:  # killed after publishing: nothing of it is needed any more
            clean_up(PlannedArtifact("demo", True, (), ()), out)
            assert {path.name for path in out.parent.iterdir()} == {"out"}, list(out.parent.iterdir())
        assert content(out) == wanted
        redone = len(solved.read_bytes()) - 2
        assert redone in (0, 1), f"{redone} blocks were done again after call {k}"
    raise AssertionError("no run was ever left alone")


if __name__ == "__main__":
    with memory_folder() as where:
        print(sweep(where))

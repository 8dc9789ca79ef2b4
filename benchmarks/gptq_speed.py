"""How long does a whole GPTQ run take beside GPTQModel's, on a model of the true MiniCPM4-0.5B shape, and what memory?

    python -m benchmarks.gptq_speed --gptqmodel ENVIRONMENT/bin/python [--layers N] [--rounds 1] [--threads 2]

Ours is `quantkit quantize` as a user runs it, calibrated on a file: reading, propagation, writing, fsync, re-reading
and hashing included. GPTQModel, in an environment of its own, loads the same model folded into a float32 Llama,
quantizes it with its defaults and saves it. Both get the same 16 x 512 token ids and the same number of threads, 4 bits
in groups of 128, and run in turns, each in a process of its own; medians are shown. Weights are random. Beside the
verdict stands what `quantkit plan` would have said about ours.

A second table shows what calibration holds in memory for 8 and for 64 sequences (`benchmarks/statistics_memory.py`).
With --layers the model has the same widths and fewer layers, for a trial: then the limits say nothing.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gptqmodel_runs
from benchmarks.child import Cost, measured
from benchmarks.export_speed import middle
from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.statistics_memory import show as show_statistics
from benchmarks.statistics_memory import usages
from golden.corpus import read_modules
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions
from quantkit.calibration.sources import file_samples
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planning.plan import Plan, plan
from quantkit.registry import open_checkpoint
from quantkit.tensors.schemes.affine_groups import AffineGroups

SEQUENCES, LENGTH = 16, 512
BITS, GROUP = 4, 128
MIN_WORKERS = 2
"""GPTQModel does not start with fewer."""
MAX_MINUTES = 12.0
MAX_PEAK_GIB = 4.0
MAX_WALL_RATIO = 1.0
GIB = 1 << 30
OURS, THEIRS = "quantkit", "GPTQModel"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model, the same folded, calibration text for ours and its token ids for the other, how many they are."""

    model: Path
    folded: Path
    text: Path
    tokens: Path
    count: int


def prepare(folder: Path, layers: int | None) -> Inputs:
    """Make everything that is not to be measured.

    Raises:
        SystemExit: the standard library has too few long modules.
    """
    inputs = Inputs(
        folder / "model", folder / "llama", folder / "text.jsonl", folder / "tokens.json", SEQUENCES * LENGTH
    )
    make_checkpoint(inputs.model, "minicpm4-0.5b", layers=layers)
    checkpoint = open_checkpoint(inputs.model)
    gptqmodel_runs.write_folded(checkpoint, inputs.folded)
    write_text(inputs.text)
    wanted = CalibrationOptions(
        files=(CalibrationFile(path=inputs.text),), own_text=False, sequences=SEQUENCES, length=LENGTH
    )
    samples = file_samples(checkpoint, wanted)
    if samples.coverage.tokens != inputs.count:
        raise SystemExit(f"{samples.coverage.tokens} calibration tokens, not {inputs.count}")
    gptqmodel_runs.write_tokens(samples.sequences, inputs.tokens)
    return inputs


def write_text(file: Path) -> None:
    """JSON lines to calibrate on: modules of the standard library that fill a sequence each."""
    long = (text for _, text in read_modules() if len(text) > 8 * LENGTH)
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in long)


def commands(inputs: Inputs, folder: Path, python: Path, threads: int) -> dict[str, tuple[list[str | Path], Path]]:
    """What each program is called with, and the folder that it writes."""
    ours, theirs = folder / "ours", folder / "theirs"
    run: list[str | Path] = [sys.executable, "-m", "quantkit", "quantize", inputs.model, "--out", ours, "--json"]
    run += ["--method", "gptq", "--bits", str(BITS), "--group-size", str(GROUP), "--threads", str(threads)]
    run += ["--calibration", inputs.text, "--only-files", "--samples", str(SEQUENCES), "--length", str(LENGTH)]
    other = gptqmodel_runs.command(
        python, inputs.folded, inputs.tokens, theirs, bits=BITS, group_size=GROUP, options={}
    )
    return {OURS: (run, ours), THEIRS: (other, theirs)}


def planned(inputs: Inputs) -> Plan:
    """What `quantkit plan` says about our run."""
    calibration = CalibrationOptions(sequences=1, length=inputs.count)
    scheme = AffineGroups(bits=BITS, group_size=GROUP)
    return plan(inputs.model, [], QuantizeOptions(method="gptq", scheme=scheme, calibration=calibration))


def fallbacks(text: str, count: int) -> int:
    """How many layers our run gave up for round-to-nearest, from what it printed.

    Raises:
        SystemExit: it was not calibrated on `count` tokens.
    """
    report = json.loads(text)["report"]
    if report["calibration"]["tokens"] != count:
        raise SystemExit(f"quantkit calibrated on {report['calibration']['tokens']} tokens, not {count}")
    return sum(tensor["fallback"] is not None for tensor in report["tensors"].values())


def run(inputs: Inputs, folder: Path, python: Path, *, rounds: int, threads: int) -> tuple[dict[str, Cost], int]:
    """Both programs in turns: medians, and how many layers ours rounded to nearest."""
    costs: dict[str, list[Cost]] = {OURS: [], THEIRS: []}
    workers = max(threads, MIN_WORKERS)
    environment = {"OMP_NUM_THREADS": str(threads), "GPTQMODEL_CPU_WORKERS": str(workers)}
    given_up = 0
    for number in range(1, rounds + 1):
        for program, (command, out) in commands(inputs, folder, python, threads).items():
            os.sync()  # what the other left unwritten is not this one's cost
            cost, text = measured(command, environment=environment)
            shutil.rmtree(out)
            costs[program].append(cost)
            if program == OURS:
                given_up = fallbacks(text, inputs.count)
            print(f"round {number}: {program} {cost.wall:.0f} s", file=sys.stderr, flush=True)
    return {program: middle(found) for program, found in costs.items()}, given_up


def show(costs: Mapping[str, Cost]) -> bool:
    """Print the table and the targets; returns whether all are met."""
    ours, theirs = costs[OURS], costs[THEIRS]
    print("program      wall s    CPU s  peak GiB   wall x    CPU x")
    for program, cost in costs.items():
        print(
            f"{program:10}{cost.wall:9.1f}{cost.cpu:9.1f}{cost.peak_rss / GIB:10.2f}"
            f"{cost.wall / theirs.wall:9.2f}{cost.cpu / theirs.cpu:9.2f}"
        )
    targets = (
        ("minutes of wall time", ours.wall / 60, MAX_MINUTES),
        ("GiB of peak memory", ours.peak_rss / GIB, MAX_PEAK_GIB),
        ("wall time of GPTQModel's", ours.wall / theirs.wall, MAX_WALL_RATIO),
    )
    for name, found, most in targets:
        print(f"  {'pass' if found <= most else 'FAIL'}  {found:.2f} {name}, at most {most:g}")
    return all(found <= most for _, found, most in targets)


def main() -> int:
    """Make the model, measure, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gptqmodel", type=Path, required=True, help="interpreter of an environment with GPTQModel")
    parser.add_argument("--layers", type=int, help="for a trial: fewer than the 24 of the true model")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = prepare(folder, options.layers)
        costs, given_up = run(inputs, folder, options.gptqmodel, rounds=options.rounds, threads=options.threads)
        met = show(costs)
        print(f"        {given_up} layers of ours were rounded to nearest")
        foreseen = planned(inputs)
        minutes, peak = foreseen.seconds / 60, foreseen.peak_memory_bytes / GIB
        print(f"        `quantkit plan` says {minutes:.1f} minutes and {peak:.2f} GiB\n")
        met &= show_statistics(usages(inputs.model, (8, 64), 128, options.threads))
    if options.layers is not None:
        print(f"only {options.layers} layers: a trial, not a verdict")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

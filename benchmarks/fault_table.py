"""Does `verify` catch every kind of wrong artifact, each in the step that is meant for it, and no right one?

    python -m benchmarks.fault_table [--model DIR] [--golden FILE] [--kind KIND ...] [--only SUBSTRING ...]
                                     [--arch native|llama] [--quick] [--processes N] [--out FILE.md]
    python -m benchmarks.fault_table --honest [--model DIR] [--golden FILE]

One row per seeded fault (`benchmarks/faults/`), one column per kind of weights and container. A cell names the steps of
`verify` that caught the fault, in every way that it got in: bytes changed and the manifest signed anew, the exporter
given a wrong model, a wrong model converted honestly. "-" is a fault that makes no sense there (dense weights have no
codes), "no change" one that left every byte as it was (equal factors exchanged); neither counts as caught. "!" marks a
fault that got through, or was caught in a step that is not meant for it.

Without an engine: what this proves are steps 1 to 4. Exits with 1 when a fault got through or an honest artifact
failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.faults.catalog import FAULTS
from benchmarks.faults.fault import Fault
from benchmarks.faults.honest import everything
from benchmarks.faults.trials import PASSED, Cell, alarms, cell
from benchmarks.faults.workbench import Variant, Workbench, variants
from quantkit.artifacts.publishing import publish
from quantkit.registry import open_checkpoint
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.prompts import default_prompts
from quantkit.verification.recording import record

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("f16", "int4")
"""Weights of `--quick`."""


def chosen_faults(kinds: Sequence[str], only: Sequence[str]) -> list[Fault]:
    """The faults of the table, or those that are asked for."""
    named = [fault for fault in FAULTS if not only or any(part in fault.name for part in only)]
    return [fault for fault in named if not kinds or fault.kind in kinds]


def golden_file(model: Path, file: Path | None, folder: Path) -> Path:
    """The golden file that is given or lies beside the model, or one that is recorded now."""
    beside = model.parent / ("golden.bin" if model.name == "model" else f"{model.name}.bin")
    if file is not None or beside.exists():
        return file or beside
    checkpoint = open_checkpoint(model)
    prompts = default_prompts(open_tokenizer(checkpoint), max_tokens=checkpoint.spec.max_position_embeddings)
    return publish(record(checkpoint, prompts), folder / "golden.bin", inputs=checkpoint.inputs).path


def column(model: Path, golden: Path, variant: Variant, names: Sequence[str]) -> tuple[list[str], list[Cell]]:
    """One column: false alarms about its honest artifact, then every fault (by name: functions cannot be sent)."""
    chosen = [fault for fault in FAULTS if fault.name in set(names)]
    with tempfile.TemporaryDirectory(prefix="quantkit-faults-") as scratch:
        bench = Workbench(model, golden, Path(scratch))
        honest = bench.against_all(str(variant), bench.honest(variant))
        raised = [f"{name}: FALSE ALARM: {alarm}" for name, alarm in alarms(bench, honest) if alarm]
        return raised, [cell(bench, fault, variant) for fault in chosen]


def honest_lines(model: Path, golden: Path) -> Iterator[str]:
    """One line for every right artifact."""
    with tempfile.TemporaryDirectory(prefix="quantkit-honest-") as scratch:
        bench = Workbench(model, golden, Path(scratch))
        for name, alarm in alarms(bench, everything(bench)):
            yield f"{name}: {f'FALSE ALARM: {alarm}' if alarm else 'verified'}"


def table(faults: Sequence[Fault], columns: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """The table in Markdown."""
    yield "| kind | fault | meant for | " + " | ".join(str(column[0].variant) for column in columns) + " |"
    yield "|---" * (3 + len(columns)) + "|"
    for row, fault in enumerate(faults):
        meant = ", ".join(dict.fromkeys(step for trial in fault.trials for step in trial.steps))
        yield f"| {fault.kind} | {fault.name} | {meant} | " + " | ".join(str(column[row]) for column in columns) + " |"


def summary(faults: Sequence[Fault], columns: Sequence[Sequence[Cell]]) -> str:
    """How many of how many."""
    outcomes = [outcome for column in columns for cell_ in column for outcome in cell_.outcomes]
    changed = [outcome for outcome in outcomes if outcome.step is not None]
    caught = sum(outcome.step != PASSED for outcome in changed)
    meant = sum(outcome.right for outcome in changed)
    return (
        f"{len(faults)} faults, {len(changed)} wrong artifacts: {caught} caught, {meant} in a step meant for it; "
        f"{len(outcomes) - len(changed)} changed nothing"
    )


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "golden" / "model")
    parser.add_argument("--golden", type=Path, help="its golden file; default: beside it, or recorded now")
    parser.add_argument("--kind", nargs="+", default=(), help="only these kinds of faults")
    parser.add_argument("--only", nargs="+", default=(), metavar="SUBSTRING", help="only faults with these names")
    parser.add_argument("--arch", default="native", choices=("native", "llama"))
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)} weights")
    parser.add_argument("--honest", action="store_true", help="right artifacts of every kind instead of wrong ones")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    return parser.parse_args()


def wrong_ones(options: argparse.Namespace, golden: Path) -> list[str]:
    """Print the table; return what went wrong."""
    faults = chosen_faults(options.kind, options.only)
    names = [fault.name for fault in faults]
    chosen = [variant for variant in variants(options.arch) if variant.name in QUICK or not options.quick]
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each process has one core
    columns: list[list[Cell]] = []
    problems: list[str] = []
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"))
    try:
        running = [pool.submit(column, options.model, golden, variant, names) for variant in chosen]
        for variant, future in zip(chosen, running, strict=True):
            raised, cells = future.result()
            columns.append(cells)
            problems += [*raised, *(line for c in cells for line in c.problems())]
            print(f"{variant}: {sum(not c.right for c in cells)} faults not caught as meant", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    alarmed = sum("FALSE ALARM" in line for line in problems)
    text = "\n".join([*table(faults, columns), "", f"{summary(faults, columns)}; {alarmed} false alarms"])
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return problems


def right_ones(options: argparse.Namespace, golden: Path) -> list[str]:
    """Print a line for every honest artifact; return those that were accused."""
    problems, count = [], 0
    for line in honest_lines(options.model, golden):
        print(line, flush=True)
        count += 1
        problems += [line] if "FALSE ALARM" in line else []
    print(f"{count} proofs of right artifacts, {len(problems)} false alarms")
    return problems


def main() -> int:
    """Print what is asked for, and at the end what went wrong; return the exit code."""
    options, start = parsed(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="quantkit-golden-") as scratch:
        golden = golden_file(options.model, options.golden, Path(scratch))
        problems = (right_ones if options.honest else wrong_ones)(options, golden)
    print("\n".join(problems))
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

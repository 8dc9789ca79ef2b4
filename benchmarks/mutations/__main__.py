"""Do damaged files ever get a traceback, a wait of more than 2 s, or more than 500 MB?

    python -m benchmarks.mutations --file tokenizer.json --count 20000 --seed 0
    python -m benchmarks.mutations --file tokenizer.json --only 1234

Mutant N of a file is the same on every machine; `--seed` is the number of the first. Each goes through what `inspect`,
`plan`, `verify` and `run` do with a model before they read weights: open the folder, describe it, plan five containers,
read and use the tokenizer, and, for one in `--render-every`, render the chat template in quantkit's own child process.
Exit code 1 when one is at fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mutations.subjects import SUBJECTS, Subject
from benchmarks.mutations.trial import Outcome
from benchmarks.mutations.workers import outcomes

RENDER_EVERY = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="mutations-", dir=options.scratch) as scratch:
        bad = 0
        for name in options.file or SUBJECTS:
            made = Path(scratch) / name
            made.mkdir(parents=True)
            subject = SUBJECTS[name](Path(scratch))
            bad += (
                _replayed(subject, options.only, made) if options.only is not None else _tried(subject, options, made)
            )
    return 1 if bad else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations", description="Try damaged files.")
    parser.add_argument("--file", nargs="*", choices=list(SUBJECTS), help="which file is damaged (default: all)")
    parser.add_argument("--count", type=int, default=1000, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--only", type=int, help="replay this mutant: show its file, its answer and its traceback")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--render-every", type=int, help="render the template of one mutant in so many")
    parser.add_argument("--scratch", type=Path, help="a folder for the models (default: that of temporary files)")
    parser.add_argument("--show", type=int, default=10, help="kinds of faults that are shown")
    return parser.parse_args(arguments)


def _tried(subject: Subject, options: argparse.Namespace, scratch: Path) -> int:
    """Try them all; returns how many are at fault."""
    every = options.render_every or (1 if subject.name.endswith(".jinja") else RENDER_EVERY)
    numbers = range(options.seed, options.seed + options.count)
    start = time.monotonic()
    done: list[Outcome] = []
    for outcome in outcomes(subject, numbers, workers=options.workers, render_every=every, scratch=scratch):
        done.append(outcome)
        if sys.stderr.isatty() and len(done) % 100 == 0:
            print(f"{subject.name}: {len(done):,} of {options.count:,}", end="\r", file=sys.stderr)
    bad = [outcome for outcome in done if outcome.fault is not None]
    kinds = Counter(outcome.answer.partition(":")[0] for outcome in done if outcome.fault is None)
    print(
        f"{subject.name}: {len(done):,} mutants from {options.seed}, {len(bad)} at fault, "
        f"{time.monotonic() - start:.0f} s; longest {max(o.seconds for o in done):.2f} s, "
        f"most memory {max(o.grown for o in done) / 1e6:.0f} MB; "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)),
        flush=True,
    )
    _show(bad, options.show)
    return len(bad)


def _show(bad: Sequence[Outcome], most: int) -> None:
    """Faults by kind: the last lines of the traceback, and the numbers of some mutants that end there."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in sorted(bad, key=lambda outcome: outcome.number):
        kinds.setdefault(_kind(outcome.fault or ""), []).append(outcome)
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1]))[:most]:
        print(f"  {len(members)} x {kind}\n      mutants {', '.join(str(o.number) for o in members[:8])}", flush=True)


def _kind(fault: str) -> str:
    """Where in quantkit a traceback ends, and with what; other faults as they are."""
    lines = fault.strip().splitlines()
    places = [line.strip() for line in lines if line.strip().startswith("File ") and "mutations" not in line]
    ours = [place for place in places if any(room in place for room in ("/quantkit/", "/exporters/", "/runtimes/"))]
    return " < ".join([lines[-1][:200], *ours[-1:]]) if ours else lines[-1][:200]


def _replayed(subject: Subject, number: int, scratch: Path) -> int:
    _, mutant = subject.mutant(number)
    kept = Path(tempfile.gettempdir()) / f"mutant-{number}-{subject.name}"
    kept.write_bytes(mutant)
    (outcome,) = outcomes(subject, [number], workers=1, render_every=1, scratch=scratch)
    print(f"{kept}: {len(mutant):,} bytes; {outcome.seconds:.2f} s, {outcome.grown / 1e6:.0f} MB; {outcome.answer}")
    print(outcome.fault or "no fault")
    return int(outcome.fault is not None)


if __name__ == "__main__":
    sys.exit(main())

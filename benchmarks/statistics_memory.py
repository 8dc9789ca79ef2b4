"""Does the memory of calibration statistics grow with the number of samples?

    python -m benchmarks.statistics_memory [--model DIR] [--sequences 8 64] [--length 128] [--threads 2]

For each number of sequences a process of its own accumulates the statistics of the first block, stage by stage, and
prints the largest size of what one stage holds of them (Hessians and drifts, fitting and held-out part), which must
not grow; the size of both residual streams, which is proportional to the tokens; and the process's peak.

Exits with 1 when the statistics grow.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.child import measured

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: the most that one stage's statistics take, both residual streams, peak of the process."""

    sequences: int
    tokens: int
    statistics: int
    streams: int
    peak_rss: int


def accumulate(model: Path, sequences: int, length: int, threads: int) -> Usage:
    """Statistics of the first block on random tokens, in this process."""
    import numpy as np  # noqa: PLC0415 - as below: memory of the caller would count as that of its children

    from quantkit.calibration.activations import HiddenStates, Stage  # noqa: PLC0415
    from quantkit.calibration.samples import CalibrationOptions, make_samples  # noqa: PLC0415
    from quantkit.models.loading import load_block  # noqa: PLC0415
    from quantkit.registry import open_checkpoint  # noqa: PLC0415

    def held(stage: Stage) -> int:
        drifts = [part.nbytes for part in (stage.drift.fitted, stage.drift.held_out)] if stage.drift else []
        return stage.fitted.hessian.nbytes + stage.held_out.hessian.nbytes + sum(drifts)

    checkpoint = open_checkpoint(model)
    random = np.random.default_rng(0)
    tokens = random.integers(3, checkpoint.spec.vocab_size, (sequences, length))
    samples = make_samples(list(tokens), source="random", digest="")
    hidden = HiddenStates(checkpoint, samples, skip_positions=CalibrationOptions().skip_positions, threads=threads)
    original = load_block(checkpoint, 0)
    statistics = max(map(held, hidden.stages(deepcopy(original), original)))
    streams = sum(rows.nbytes for rows in (*hidden.states, *hidden.original))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Usage(sequences, tokens.size, statistics, streams, peak)


def usages(model: Path, counts: Sequence[int], length: int, threads: int) -> list[Usage]:
    """`accumulate` for each number of sequences, in a process of its own."""
    found = []
    for count in counts:
        options = [("--model", model), ("--sequences", count), ("--length", length), ("--threads", threads)]
        command = [sys.executable, "-m", "benchmarks.statistics_memory", "--child"]
        _, text = measured([*command, *(str(part) for option in options for part in option)])
        found.append(Usage(**json.loads(text)))
    return found


def show(found: Sequence[Usage]) -> bool:
    """Print a line each and the verdict; returns whether the statistics stay as they are."""
    print("sequences   tokens  statistics MiB  streams MiB  peak MiB")
    for one in found:
        megabytes = (one.statistics / MIB, one.streams / MIB, one.peak_rss / MIB)
        print("{:9}{:9}{:16.1f}{:13.1f}{:10.0f}".format(one.sequences, one.tokens, *megabytes))
    ratio = found[-1].statistics / found[0].statistics
    per_token = (found[-1].peak_rss - found[0].peak_rss) / max(1, found[-1].tokens - found[0].tokens) / 1024
    print(f"  {'pass' if ratio == 1 else 'FAIL'}  {ratio:.3f} times the statistics of the first, 1 wanted", end="; ")
    print(f"the peak grows by {per_token:.1f} KiB per token, for streams and one stage's inputs")
    return ratio == 1


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "golden" / "model")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help="measure this process and print JSON")
    options = parser.parse_args()
    if options.child:
        usage = accumulate(options.model, options.sequences[0], options.length, options.threads)
        print(json.dumps(asdict(usage)))
        return 0
    return 0 if show(usages(options.model, options.sequences, options.length, options.threads)) else 1


if __name__ == "__main__":
    sys.exit(main())

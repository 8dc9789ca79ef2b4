"""Are the time and the memory that `quantkit plan` tells what a run then takes?

    python -m benchmarks.plan_estimates [--model DIR] [--threads 2] [--only TEXT]

Of the golden model and of two layers of MiniCPM4-0.5B's true shape (or of --model alone): each line is planned, and
done at once. Printed are seconds and peak memory, planned and found, and their ratios. Ratios should be between 1/1.5
and 1.5; seconds below `SHORT` are shown and not judged. Plans look at how busy
the machine is, so that other work may run meanwhile, if it goes on as it began.

Exits with 1 when an estimate is further off.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import measured
from benchmarks.make_checkpoint import make_checkpoint

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "model"
QUANTKIT = (sys.executable, "-m", "quantkit")
FACTOR = 1.5
SHORT = 5.0
RUNS = (
    "quantize --method gptq --samples 16",
    "quantize --method gptq --samples 128",
    "quantize --method awq --samples 32",
    "quantize --method ternary --samples 16",
    "quantize --method rtn",
    "export gguf --type q4_k_m",
    "export gguf --type q4_0",
    "export hf",
)
LARGE = {"quantize --method gptq --samples 128": "quantize --method gptq --samples 32"}
"""What takes too long on the larger model, and what is done in its place."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds and peak bytes."""

    seconds: float
    memory: int


def planned(model: Path, words: Sequence[str], threads: int) -> Estimate:
    """What `quantkit plan` says to a line of `RUNS`."""
    verb, *rest = words
    if verb == "export":
        container, *others = rest
        kind = f":{others[others.index('--type') + 1]}" if "--type" in others else ""
        wanted = ["--to", container + kind]
    else:
        wanted = ["--to", "compressed-tensors", *rest]
    _, shown = measured([*QUANTKIT, "plan", model, *wanted, "--threads", str(threads), "--json"])
    answer = json.loads(shown)
    seconds = answer["targets"][0]["seconds"] if verb == "export" else answer["seconds"]
    return Estimate(seconds, answer["peak_memory_bytes"])


def found(model: Path, words: Sequence[str], threads: int) -> Estimate:
    """What the line takes."""
    verb, *rest = words
    container = [rest.pop(0)] if verb == "export" else []
    with tempfile.TemporaryDirectory(prefix="quantkit-plan-") as folder:
        out = Path(folder) / ("out.gguf" if container == ["gguf"] else "out")
        cost, _ = measured(
            [*QUANTKIT, verb, *container, model, *rest, "--threads", str(threads), "--out", out, "--quiet"]
        )
    return Estimate(cost.wall, cost.peak_rss)


def lines(model: Path, *, large: bool) -> Iterator[list[str]]:
    """The runs of a model, as words."""
    for line in RUNS:
        yield shlex.split(LARGE.get(line, line) if large else line)


def show(model: Path, words: Sequence[str], threads: int) -> bool:
    """Plan it, do it, print a line; whether the estimates are near enough."""
    estimate, real = planned(model, words, threads), found(model, words, threads)
    ratios = {"time": estimate.seconds / real.seconds, "memory": estimate.memory / real.memory}
    judged = ["memory", *(["time"] if real.seconds >= SHORT else [])]
    good = all(1 / FACTOR <= ratios[name] <= FACTOR for name in judged)
    verdict = "pass" if good else "FAIL"
    print(
        f"{model.name:10}{' '.join(words):52}{estimate.seconds:8.1f} s{real.seconds:8.1f} s{ratios['time']:6.2f} x"
        f"{estimate.memory >> 20:8} MiB{real.memory >> 20:8} MiB{ratios['memory']:6.2f} x  {verdict}",
        flush=True,
    )
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan and do every line; return 1 when an estimate is too far off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="lines that contain this")
    options = parser.parse_args(arguments)
    print(f"{'model':10}{'run':52}{'planned':>10}{'found':>10}{'':8}{'planned':>12}{'found':>12}")
    with tempfile.TemporaryDirectory(prefix="quantkit-shape-") as folder:
        models = [(options.model, True)]
        if options.model is None:
            shaped = Path(folder) / "0.5b-x2"
            make_checkpoint(shaped, "minicpm4-0.5b", layers=2)
            models = [(GOLDEN, False), (shaped, True)]
        good = [
            show(model, words, options.threads)
            for model, large in models
            for words in lines(model, large=large)
            if options.only in " ".join(words)
        ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What share of a quantization run does the model's own calibration text take, on a model of true size?

    python -m benchmarks.own_text_share [--layers N ...] [--sequences 128] [--threads 2]

`quantkit quantize` with its defaults on the 0.5B shape with random weights: wall and processor seconds of the stages,
as its progress tells them. A run of all 24 layers takes a quarter of an hour; with --layers some runs of fewer, and
from the first and the last of them, in a straight line, the whole. Exits with 1 when generation takes more than a fifth
of the processor time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import quantkit
from benchmarks.make_checkpoint import make_checkpoint

SHAPE, LAYERS = "minicpm4-0.5b", 24
MOST = 0.2
GENERATION, FISHER, BLOCKS = "generation", "Fisher pass", "blocks"
STAGES = {"generating": GENERATION, "Fisher": FISHER, "block": BLOCKS}
"""By how the progress of a stage begins; the rest of a run is counted with the stage before it."""
Seconds = Mapping[str, tuple[float, float]]
"""Wall and processor seconds by stage."""


def measured(folder: Path, layers: int, sequences: int, threads: int) -> Seconds:
    """One run on a model of so many layers."""
    model = folder / f"model-{layers}"
    make_checkpoint(model, SHAPE, layers=layers)
    spent = {stage: [0.0, 0.0] for stage in STAGES.values()}
    last = [time.perf_counter(), time.process_time()]
    current = GENERATION

    def told(what: str, done: float, total: float, /) -> None:
        nonlocal current
        now = [time.perf_counter(), time.process_time()]
        for i in range(2):
            spent[current][i] += now[i] - last[i]
            last[i] = now[i]
        current = next((stage for start, stage in STAGES.items() if what.startswith(start)), current)

    options = quantkit.QuantizeOptions(calibration=quantkit.CalibrationOptions(sequences=sequences))
    compute = quantkit.Compute(threads=threads)
    quantkit.quantize(model, folder / f"out-{layers}", options, compute=compute, progress=told)
    return {stage: (wall, processor) for stage, (wall, processor) in spent.items()}


def extended(few: tuple[int, Seconds], many: tuple[int, Seconds]) -> Seconds:
    """What LAYERS layers take, in a straight line through two runs."""
    (a, first), (b, second) = few, many
    return {
        stage: (
            first[stage][0] + (second[stage][0] - first[stage][0]) * (LAYERS - a) / (b - a),
            first[stage][1] + (second[stage][1] - first[stage][1]) * (LAYERS - a) / (b - a),
        )
        for stage in first
    }


def shown(name: str, seconds: Seconds) -> float:
    """Print a run; return the share of generation in its processor time."""
    share = seconds[GENERATION][1] / sum(processor for _, processor in seconds.values())
    cells = "  ".join(f"{stage} {wall:.0f} s ({processor:.0f})" for stage, (wall, processor) in seconds.items())
    print(f"{name:20}{cells}  generation {share:.1%}", flush=True)
    return share


def main() -> int:
    """Measure, print wall (processor) seconds; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[LAYERS])
    parser.add_argument("--sequences", type=int, default=quantkit.CalibrationOptions().sequences)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in options.layers:
            runs.append((layers, measured(Path(folder), layers, options.sequences, options.threads)))
            share = shown(f"{layers} layers", runs[-1][1])
    if len(runs) > 1:
        share = shown(f"{LAYERS} layers, a line", extended(runs[0], runs[-1]))
    print(f"generation takes {share:.1%} of the run, at most {MOST:.0%} wanted")
    return int(share > MOST)


if __name__ == "__main__":
    sys.exit(main())

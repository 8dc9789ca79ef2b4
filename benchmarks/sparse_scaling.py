"""How do time and memory of sparse attention grow with the context, beside the fastest dense attention?

    python -m benchmarks.sparse_scaling [--runtime numpy onnxruntime] [--lengths 4096 ... 131072] [--json F] [--plot F]

Two subjects in each runtime: attention of one layer at the shape of MiniCPM4-8B (32 heads, 2 of keys and values, 128
channels, the published `sparse_config` but in numpy sparse at any length), and a whole small model (4 layers, 16 heads
of 64), whose dense side is the reference's own, and the exported graph on shared buffers.
Seconds of processor, one thread, by decoded token (the fastest of 40) and by token of a prompt; dense and sparse take
turns in one process. Peak memory is of a process that does one of the two. Prompts of the model are at most
--longest-prompt tokens, as dense attention to more takes hours; `benchmarks/sparse/child.py` says how a long prompt is
sampled and `benchmarks/sparse/attention.py` what the dense side is.

Prints a table and what was aimed for, and draws both with the crossovers marked. Exits with 1 when an aim is missed.
--json keeps figures: those that are in the file are not measured again. matplotlib comes with the extra
quantkit[benchmarks].
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.child import measured
from benchmarks.sparse.attention import ATTENTIONS, SPARSE
from benchmarks.sparse.model import MODELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTHS = tuple(1 << power for power in range(12, 18))
SHORT, LONG = 1 << 15, 1 << 17
"""The lengths that are aimed at."""
MAX_DECODE, MAX_GROWTH, MAX_PEAK_GIB, MAX_SHARE = 1 / 8, 1.8, 3.0, 0.05
MAX_PREFILL = {"numpy": 0.8, "onnxruntime": 1.5}
PICTURE = Path(__file__).parent.parent / "docs" / "sparse-scaling.png"
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
KINDS = ("dense", "sparse")
SUBJECTS = {"attention": "attention of one layer, 8B's heads", "model": "a whole small model"}
STEPS = {"decode": "a decoded token", "prefill": "a token of a prompt"}
INK = {"dense": "#d55e00", "sparse": "#0072b2"}
"""Colours that stay apart for the colour-blind."""
MARKS = ("o", "s", "^")
YTICKS = [base * 10.0**power for power in range(-2, 4) for base in (1, 2, 5)]
Curve = Mapping[int, float]
"""By length."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Figures of one subject in one runtime, by length: what `benchmarks/sparse/child.py` prints, and `peak` bytes."""

    subject: str
    runtime: str
    figures: Mapping[int, Mapping[str, Mapping[str, float]]]

    def curve(self, step: str, kind: str) -> Curve:
        """Seconds a token, or bytes; of the lengths that have them."""
        return {length: found[step][kind] for length, found in self.figures.items() if kind in found.get(step, {})}

    def ratio(self, step: str) -> Curve:
        """Sparse over dense."""
        dense, sparse = (self.curve(step, kind) for kind in KINDS)
        return {length: sparse[length] / dense[length] for length in dense}


def crossover(ratio: Curve) -> float | None:
    """From which length on sparse takes less, between two measured ones on a line of logarithms; None if never."""
    lengths = sorted(ratio)
    above = [length for length in lengths if ratio[length] > 1]
    if not above:
        return float(lengths[0])
    if above[-1] == lengths[-1]:
        return None
    left, right = above[-1], lengths[lengths.index(above[-1]) + 1]
    part = math.log(ratio[left]) / (math.log(ratio[left]) - math.log(ratio[right]))
    return float(left * (right / left) ** part)


class Measurements:
    """Makes figures, or reads them from the file that keeps them."""

    def __init__(self, file: Path | None, runs: int) -> None:
        self._file = file
        self._runs = runs
        self._kept: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def scaling(self, subject: str, runtime: str, lengths: Sequence[int]) -> Scaling:
        """All lengths of a subject."""
        return Scaling(subject, runtime, {length: self._figures(subject, runtime, length) for length in lengths})

    def _figures(self, subject: str, runtime: str, length: int) -> Mapping[str, Mapping[str, float]]:
        name = f"{subject} {runtime} {length}"
        if name not in self._kept:
            _, printed = child(subject, runtime, length, "--runs", self._runs)
            alone = {kind: child(subject, runtime, length, "--runs", 1, "--kinds", kind)[0] for kind in KINDS}
            self._kept[name] = {**json.loads(printed), "peak": alone}
            print(f"{name}: {self._kept[name]['decode']}", file=sys.stderr, flush=True)
            if self._file is not None:
                self._file.write_text(json.dumps(self._kept, indent=1) + "\n")
        found: Mapping[str, Mapping[str, float]] = self._kept[name]
        return found


def child(subject: str, runtime: str, length: int, *words: str | int) -> tuple[int, str]:
    """One process of `benchmarks/sparse/child.py`: its peak bytes, and what it prints."""
    command = [sys.executable, "-m", "benchmarks.sparse.child", subject, runtime, str(length), *map(str, words)]
    cost, printed = measured(command, environment=THREADS)
    return cost.peak_rss, printed


def table(found: Sequence[Scaling]) -> Iterator[str]:
    """Markdown: a row per length."""
    for one in found:
        yield f"\n{SUBJECTS[one.subject]}, {one.runtime}\n"
        yield "| tokens | decode, dense ms | sparse | ratio | prefill, dense us | sparse | ratio | peak, MiB | sparse |"
        yield "|---:" * 9 + "|"
        for length in one.figures:
            cells = [f"{length}", *cells_of(one, "decode", length, 1e3), *cells_of(one, "prefill", length, 1e6)]
            cells += [f"{one.curve('peak', kind)[length] / 2**20:.0f}" for kind in KINDS]
            yield f"| {' | '.join(cells)} |"


def cells_of(one: Scaling, step: str, length: int, unit: float) -> list[str]:
    """Dense, sparse and their ratio."""
    dense, sparse = (one.curve(step, kind)[length] for kind in KINDS)
    return [f"{dense * unit:.2f}", f"{sparse * unit:.2f}", f"{sparse / dense:.2f}"]


def aims(one: Scaling) -> Iterator[tuple[bool, str]]:
    """What was aimed for of attention alone, where its lengths were measured, and whether it is met."""
    name = f"{one.runtime}: a token decoded at {LONG}"
    decode, prefill = one.ratio("decode"), one.ratio("prefill")
    sparse = one.curve("decode", "sparse")
    if LONG in decode:
        share = SPARSE.attended(LONG) / LONG
        yield share < MAX_SHARE, f"{name} attends to {share:.2%} of the tokens, aimed at less than {MAX_SHARE:.0%}"
        yield decode[LONG] <= MAX_DECODE, f"{name} takes {decode[LONG]:.3f} of dense, aimed at {MAX_DECODE:.3f}"
        peak = one.curve("peak", "sparse")[LONG] / 2**30
        yield peak <= MAX_PEAK_GIB, f"{one.runtime}: {peak:.2f} GiB at {LONG}, aimed at {MAX_PEAK_GIB:g}"
    if LONG in decode and SHORT in decode:
        growth = sparse[LONG] / sparse[SHORT]
        yield growth < MAX_GROWTH, f"{name} takes {growth:.2f} of one at {SHORT}, aimed at less than {MAX_GROWTH:g}"
    if SHORT in prefill:
        most = MAX_PREFILL[one.runtime]
        text = f"{one.runtime}: a prompt of {SHORT} takes {prefill[SHORT]:.2f} of dense, aimed at {most:g}"
        yield prefill[SHORT] <= most, text


def drawn(found: Sequence[Scaling]) -> Figure:
    """A panel by subject and step, dense and sparse of every runtime, crossovers marked."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and the table does without it

    subjects = list(dict.fromkeys(one.subject for one in found))
    figure = Figure(figsize=(9.6, 3.7 * len(subjects)), dpi=110, layout="constrained")
    panels = figure.subplots(len(subjects), len(STEPS), squeeze=False)
    for row, subject in zip(panels, subjects, strict=True):
        for panel, step in zip(row, STEPS, strict=True):
            for one, mark in zip((one for one in found if one.subject == subject), MARKS, strict=False):
                draw(panel, one, step, mark)
            panel.set_title(f"{SUBJECTS[subject]}: {STEPS[step]}", fontsize=10)
            finish(panel)
    return figure


def draw(panel: Axes, one: Scaling, step: str, mark: str) -> None:
    """Two curves and where they cross."""
    for kind in KINDS:
        curve = one.curve(step, kind)
        values = [1e3 * value for value in curve.values()]
        panel.plot(list(curve), values, marker=mark, color=INK[kind], label=f"{kind}, {one.runtime}")
    place = crossover(one.ratio(step))
    if place is not None:
        first = place == min(one.ratio(step))
        label = f"{one.runtime}: sparse takes less {'at every length' if first else f'from {place / 1024:.1f}K on'}"
        panel.axvline(place, color="0.5", linestyle=":", label=label)


def finish(panel: Axes) -> None:
    """Axes of logarithms."""
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    shown = [tick for tick in YTICKS if low <= tick <= high]
    panel.set_yticks(shown, [f"{tick:g}" for tick in shown])
    panel.minorticks_off()
    ticks = sorted({int(x) for line in panel.get_lines() for x in line.get_xdata() if x in LENGTHS})
    panel.set_xticks(ticks, [f"{tick // 1024}K" for tick in ticks])
    panel.set_xlabel("tokens")
    panel.set_ylabel("ms of processor a token")
    panel.grid(color="0.9")
    panel.legend(fontsize=6.5, loc="upper left", framealpha=0.6)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", nargs="+", choices=tuple(ATTENTIONS), default=tuple(ATTENTIONS))
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--longest-prompt", type=int, default=SHORT, help="of the whole model")
    parser.add_argument("--runs", type=int, default=4, help="stretches of 2048 tokens that are read of a prompt")
    parser.add_argument("--json", type=Path, help="file that results are added to")
    parser.add_argument("--plot", type=Path, default=PICTURE)
    return parser.parse_args()


def main() -> int:
    """Measure, print, draw."""
    options = parsed()
    lengths = sorted(options.lengths)
    measurements = Measurements(options.json, options.runs)
    found = [measurements.scaling("attention", runtime, lengths) for runtime in options.runtime]
    short = [length for length in lengths if length <= options.longest_prompt]
    if short:
        found += [measurements.scaling("model", runtime, short) for runtime in options.runtime if runtime in MODELS]
    print("\n".join(table(found)) + "\n")
    missed = False
    for one in found:
        for met, text in aims(one) if one.subject == "attention" else ():
            missed |= not met
            print(f"{'pass' if met else 'FAIL'}  {text}")
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    drawn(found).savefig(options.plot, metadata={"Software": None})
    print(f"\n{options.plot}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""How much text must a model write itself before more of it makes the quantized model no better?

    python -m benchmarks.sample_counts [--model DIR ...] [--counts 8 32 128 512] [--json FILE]
                                       [--out FILE]

KL(original || quantized) of what `quantkit quantize` makes by itself, as a share of that of round to nearest, 4 bits
in groups of 128, on the three kinds of held-out text of `benchmarks/int4_quality.py`. The text is generated once, as
for the largest count; a smaller count takes the first of its sequences, and that share of the seconds. Prints a table
and draws it, a panel for each model.

--json keeps figures: those that are in the file are not measured again. matplotlib comes with the extra
quantkit[benchmarks].
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.first_quality import GOLDEN, GROUP, divergence, held_out_rows, ours
from benchmarks.int4_results import Results, inputs_of
from benchmarks.text_kinds import text_kinds
from golden.corpus import read_corpus
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions, Samples, joined
from quantkit.calibration.sources import calibration_samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.registry import open_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = 4
RTN = 0
"""Its number of sequences."""
ROOT = GOLDEN.parent.parent
MODELS = (GOLDEN, GOLDEN.with_name("untuned"))
PICTURE = ROOT / "docs" / "sample-counts.png"
INK = {"prose": "#0072b2", "python": "#d55e00", "C": "#009e73"}
"""Colours that stay apart for the colour-blind."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model, and by kind of text the held-out rows that it is measured on."""

    name: str
    checkpoint: Checkpoint
    rows: Mapping[str, Sequence[torch.Tensor]]

    def row(self, count: int) -> str:
        """Name of its figures for so many sequences."""
        return f"{self.name} {'round to nearest' if count == RTN else count}"


def subjects(models: Sequence[Path], count: int) -> Iterator[Subject]:
    """Every model with the same held-out text."""
    kinds = text_kinds(read_corpus())
    for model in models:
        rows = {kind: held_out_rows(model, found, count) for kind, found in kinds.measured.items()}
        path = model.resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        yield Subject(name, open_checkpoint(model), rows)


def first(samples: Samples, count: int) -> Samples:
    """The first so many sequences, with the sources that they come from."""
    parts = [
        (source, [row for row, of in zip(samples.sequences[:count], samples.origins, strict=False) if of == number])
        for number, source in enumerate(samples.coverage.sources)
    ]
    return joined([part for part in parts if part[1]], seed=samples.coverage.seed, notes=samples.coverage.notes)


def measure(subject: Subject, counts: Sequence[int], threads: int, results: Results) -> None:
    """Make and measure what is not in the results yet."""
    missing = [count for count in (RTN, *counts) if subject.row(count) not in results.figures.get(BITS, {})]
    if not missing:
        return
    original, compute = load_model(subject.checkpoint), Compute(threads=threads)
    if RTN in missing:
        run = Quantization(subject.checkpoint, QuantizeOptions(method="rtn"), compute=compute)
        keep(subject, original, RTN, run, results)
    start = time.perf_counter()
    options = CalibrationOptions(sequences=max(counts))
    samples = calibration_samples(subject.checkpoint, options, threads=threads)
    each = (time.perf_counter() - start) / max(counts)
    for count in (count for count in missing if count != RTN):
        run = Quantization(subject.checkpoint, QuantizeOptions(), compute=compute, samples=first(samples, count))
        keep(subject, original, count, run, results, generation_seconds=each * count)


def keep(subject: Subject, original: MiniCPM, count: int, run: Quantization, results: Results, **notes: float) -> None:
    """Quantize, measure, and keep the figures."""
    start = time.perf_counter()
    model = ours(subject.checkpoint, run)
    seconds = time.perf_counter() - start
    kl = {kind: divergence(original, model, rows) for kind, rows in subject.rows.items()}
    results.add(BITS, subject.row(count), {"kl": kl, "seconds": seconds, **notes})
    print(f"{subject.row(count):40}" + "".join(f"  {kind} {value:.3e}" for kind, value in kl.items()), flush=True)


def shares(subject: Subject, counts: Sequence[int], kind: str, results: Results) -> list[float]:
    """KL on a kind of text as shares of that of round to nearest, by count."""
    rtn = results.kl(BITS, subject.row(RTN), kind)
    return [results.kl(BITS, subject.row(count), kind) / rtn for count in counts]


def table(found: Sequence[Subject], counts: Sequence[int], results: Results) -> Iterator[str]:
    """Markdown: a row per model and count."""
    heads = " | ".join(f"{kind}, x rtn" for kind in results.kinds)
    yield f"| model | sequences | {heads} | seconds, of them own text |"
    yield "|---" * (len(results.kinds) + 3) + "|"
    for subject in found:
        by_kind = [shares(subject, counts, kind, results) for kind in results.kinds]
        for count, *values in zip(counts, *by_kind, strict=True):
            figure = results.figures[BITS][subject.row(count)]
            own = figure["generation_seconds"]
            cells = " | ".join(f"{value:.3f}" for value in values)
            yield f"| {subject.name} | {count} | {cells} | {own + figure['seconds']:.0f}, {own:.0f} |"


def drawn(found: Sequence[Subject], counts: Sequence[int], results: Results) -> Figure:
    """The table as a picture, a panel per model, with the default marked."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and the table does without it

    figure = Figure(figsize=(4.2 * len(found), 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, subject in zip(panels, found, strict=True):
        for kind in results.kinds:
            values = shares(subject, counts, kind, results)
            panel.plot(counts, values, marker="o", label=kind, color=INK.get(kind))
        default = CalibrationOptions().sequences
        panel.axvline(default, color="0.6", linestyle=":", label=f"default: {default}")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set_title(subject.name, fontsize=10)
        panel.set_xlabel("sequences of own text")
        panel.grid(color="0.9")
    panels[0].set_ylim(bottom=0)  # behind all curves: the panels share it
    panels[0].set_ylabel("KL / KL of round to nearest")
    panels[0].legend(fontsize=8, loc="lower left")
    return figure


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", default=MODELS, help="default: both golden models")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--rows", type=int, default=24, help="held-out sequences of each kind of text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file that results are added to")
    parser.add_argument("--out", type=Path, default=PICTURE)
    return parser.parse_args()


def main() -> int:
    """Measure, print the table, draw it."""
    options = parsed()
    torch.set_num_threads(options.threads)
    found = list(subjects(options.model, options.rows))
    counts = sorted(options.counts)
    inputs = {subject.name: inputs_of(subject.checkpoint, [], subject.rows, GROUP) for subject in found}
    results = Results(options.json, {"held out": dict.fromkeys(found[0].rows), "models": inputs})
    for subject in found:
        measure(subject, counts, options.threads, results)
    print("\n" + "\n".join(table(found, counts, results)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn(found, counts, results).savefig(options.out, metadata={"Software": None})
    print(f"\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What training brings back of a model whose weights have three levels, or sixteen.

    python -m benchmarks.recovery [--model DIR] [--steps 2000] [--table-steps 400] [--seeds 0 1 2] [--rows 24]
                                  [--threads 2] [--only NAME ...] [--json FILE]

The golden model is quantized as `quantkit quantize` does it by default, then trained on the side of its corpus that it
was trained on (`golden/corpus.py`), and measured on the other side: perplexity, KL(original || model) per token and
top-1 agreement on modules held out, and KL on three kinds of text (`benchmarks/text_kinds.py`), of which C is of no
kind that anything was trained on.

    naive            ternary by BitCPM's formula, s = mean |w| of a row, without training
    post-training    `--method ternary`, a scale per row: where training starts from
    recovered        trained for --steps by default options
    distillation, decoupled, joint, qat: SEED
                     --table-steps by each objective: the teacher alone; cross-entropy, then the teacher; both at once;
                     cross-entropy alone
    BitCPM: SEED     decoupled, with BitCPM's own quantizer in place of learned scales, from the original's weights
    int4             `--method gptq --bits 4`, groups of 128
    int4, trained    --table-steps by default options

The table can be made in parts: --only runs the rows of those names, --json adds them to those that are in the file.
Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from benchmarks.first_quality import GOLDEN, held_out_rows
from benchmarks.text_kinds import text_kinds
from golden.corpus import Document, read_corpus, split_corpus
from quantkit import registry
from quantkit.calibration.compute import Compute
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import TERNARY, AffineGroups
from quantkit.tensors.views import QuantizedView
from quantkit.threads import single_threaded_torch
from quantkit.training.options import DECOUPLED, DERIVED, OBJECTIVES, TrainingOptions
from quantkit.training.sequences import training_text
from quantkit.training.trained_model import train
from quantkit.training.weights.student import naive_model
from quantkit.verification.metrics import compared, perplexity
from tests.support.memory import memory_checkpoint
from tests.support.runs import read_through

FULL, NAIVE, POST, RECOVERED, INT4, INT4_TRAINED = (
    "full precision",
    "naive",
    "post-training",
    "recovered",
    "int4",
    "int4, trained",
)
MODULES = "modules"
"""All kinds of documents of the modules that are held out."""
INT4_SCHEME = AffineGroups(bits=4, group_size=128)
MOST_PERPLEXITY, MOST_KL, MOST_INT4, MOST_MINUTES = 1.15, 0.5, 1.0, 25.0
"""Of full precision's, of the post-training results, and on two cores."""


@dataclass(frozen=True, slots=True)
class Figures:
    """perplexity, top1: on modules held out. kl: by kind of text. seconds, cpu: wall, and of processor."""

    perplexity: float
    top1: float
    kl: Mapping[str, float]
    seconds: float
    cpu: float


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What all rows share: the model, a file of training text, held-out rows by kind of text, and options."""

    model: Checkpoint
    file: Path
    rows: Mapping[str, Sequence[torch.Tensor]]
    threads: int

    def start(self, scheme: Scheme, method: str) -> Checkpoint:
        """The model quantized as `quantkit quantize` does it, in memory."""
        options = QuantizeOptions(method=method, scheme=scheme)
        return read_through(Quantization(self.model, options, compute=Compute(threads=self.threads)))

    def trained(self, start: Checkpoint, options: TrainingOptions) -> MiniCPM:
        """The model that a training makes."""
        text = training_text(self.model, self.model, options)
        made = train(self.model, start, text, options, compute=Compute(threads=self.threads), progress=Lines())
        for name, found in made.report["measured"].items():
            print(f"    {name:16}" + "".join(f"  {what} {value:.4g}" for what, value in found.items()), flush=True)
        arrays = {n: w.read() for n, w in start.weights.items() if not isinstance(w, QuantizedView)}
        return load_model(memory_checkpoint(self.model.config, {**arrays, **made.dense, **made.tensors}))


class Lines:
    """Prints progress once a minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: float, total: float, /) -> None:
        """See `quantkit.progress.Progress`."""
        if time.monotonic() > self._last + 60:
            self._last = time.monotonic()
            print(f"    {what}, {done / total:.0%}", flush=True)


def rows_of(setting: Setting, arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], MiniCPM]]]:
    """Every row by name, in the order of the table."""
    starts: dict[str, Checkpoint] = {}

    def start(name: str) -> Checkpoint:
        if name not in starts:
            scheme, method = (TERNARY, "ternary") if name == POST else (INT4_SCHEME, "gptq")
            starts[name] = setting.start(scheme, method)
        return starts[name]

    def trained(name: str, options: TrainingOptions) -> MiniCPM:
        return setting.trained(start(name), options)

    usual = TrainingOptions(files=(setting.file,), steps=arguments.steps)
    yield FULL, partial(load_model, setting.model)
    yield NAIVE, lambda: naive_model(setting.model, start(POST), CPU)
    yield POST, lambda: load_model(start(POST))
    yield RECOVERED, lambda: trained(POST, usual)
    short = replace(usual, steps=arguments.table_steps)
    for seed in arguments.seeds:
        for objective in OBJECTIVES:
            yield f"{objective}: {seed}", partial(trained, POST, replace(short, objective=objective, seed=seed))
        bitcpm = replace(short, objective=DECOUPLED, scales=DERIVED, seed=seed)
        yield f"BitCPM: {seed}", partial(trained, POST, bitcpm)
    yield INT4, lambda: load_model(start(INT4))
    yield INT4_TRAINED, lambda: trained(INT4, short)


@torch.inference_mode()
def measured(original: MiniCPM, model: MiniCPM, texts: Mapping[str, Sequence[torch.Tensor]]) -> Figures:
    """Figures of a model but for the seconds."""
    kl, top1, surprise = {}, 0.0, 0.0
    with single_threaded_torch():
        for kind, rows in texts.items():
            logits = [(original(row)[0].numpy(), model(row)[0].numpy(), row[0].tolist()) for row in rows]
            found = [compared(trusted, tested)[0] for trusted, tested, _ in logits]
            kl[kind] = float(np.mean([one.kl for one in found]))
            if kind == MODULES:
                top1 = float(np.mean([one.top1 for one in found]))
                surprise = float(np.mean([np.log(perplexity(tested, ids)) for _, tested, ids in logits]))
    return Figures(math.exp(surprise), top1, kl, 0.0, 0.0)


def table(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Markdown: a line for every row, those of several seeds together with their scatter."""
    kinds = list(figures[FULL].kl)
    yield f"| weights | perplexity | top-1 | {' | '.join(f'KL, {kind}' for kind in kinds)} | minutes of processor |"
    yield "|---" * (len(kinds) + 4) + "|"
    groups: dict[str, list[Figures]] = {}
    for name, one in figures.items():
        groups.setdefault(name.partition(":")[0], []).append(one)
    for name, found in groups.items():
        cells = [spread([one.perplexity for one in found], ".2f"), spread([one.top1 for one in found], ".3f")]
        cells += [spread([one.kl[kind] for one in found], ".4f") for kind in kinds]
        label = name if len(found) == 1 else f"{name}, {len(found)} seeds"
        yield f"| {label} | {' | '.join(cells)} | {fmean(one.cpu for one in found) / 60:.1f} |"


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and the standard deviation of several."""
    mean = f"{fmean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):{form}}"


def verdicts(figures: Mapping[str, Figures]) -> Iterator[tuple[str, bool]]:
    """A line for every target that was measured, and whether it is met."""

    def ratio(name: str, value: float, other: float, most: float) -> tuple[str, bool]:
        return f"{value / other:.3f} {name}, at most {most:g}", value / other <= most

    full, post, recovered = figures[FULL], figures.get(POST), figures.get(RECOVERED)
    if recovered is not None:
        yield ratio("perplexity: recovered / full precision", recovered.perplexity, full.perplexity, MOST_PERPLEXITY)
        yield f"{recovered.cpu / 120:.1f} minutes of two processors, at most 25", recovered.cpu / 120 <= MOST_MINUTES
    if recovered is not None and post is not None:
        for kind, kl in recovered.kl.items():
            yield ratio(f"KL, {kind}: recovered / post-training", kl, post.kl[kind], MOST_KL)
    if INT4 in figures and INT4_TRAINED in figures:
        kl = figures[INT4_TRAINED].kl[MODULES]
        yield ratio("KL: int4, trained / post-training", kl, figures[INT4].kl[MODULES], MOST_INT4)


def prepared(arguments: argparse.Namespace, folder: Path) -> Setting:
    """Read the model, and write the training text as a file."""
    training, held_out = split_corpus(read_corpus())
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": item.text}) + "\n" for item in training), encoding="utf-8")
    kinds: dict[str, Sequence[Document]] = {MODULES: held_out, **text_kinds(read_corpus()).measured}
    rows = {kind: held_out_rows(arguments.model, found, arguments.rows) for kind, found in kinds.items()}
    return Setting(registry.open_checkpoint(arguments.model), file, rows, arguments.threads)


def main() -> int:
    """Measure, print the table; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN)
    parser.add_argument("--steps", type=int, default=2000, help="of the row that is held against the targets")
    parser.add_argument("--table-steps", type=int, default=400, help="of the rows that are held against each other")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=24, help="held-out sequences of each kind of text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to run; default: all that are not in --json")
    parser.add_argument("--json", type=Path, help="file that figures are added to")
    arguments = parser.parse_args()
    figures: dict[str, Figures] = {}
    if arguments.json is not None and arguments.json.exists():
        figures = {name: Figures(**one) for name, one in json.loads(arguments.json.read_text()).items()}
    with tempfile.TemporaryDirectory() as folder:
        setting = prepared(arguments, Path(folder))
        original = load_model(setting.model)
        names = []
        for name, make in rows_of(setting, arguments):
            names.append(name)
            if name in figures or (arguments.only and name not in arguments.only):
                continue
            print(name, flush=True)
            start, cpu = time.perf_counter(), time.process_time()
            model = make()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            figures[name] = replace(measured(original, model, setting.rows), seconds=seconds, cpu=cpu)
            print(f"    {figures[name]}", flush=True)
            if arguments.json is not None:
                ordered = {one: asdict(figures[one]) for one in names if one in figures}
                arguments.json.write_text(json.dumps({**{n: asdict(f) for n, f in figures.items()}, **ordered}) + "\n")
    ordered_figures = {name: figures[name] for name in names if name in figures}
    print("\n" + "\n".join(table(ordered_figures)) + "\n")
    found = list(verdicts(ordered_figures))
    print("\n".join(f"{'pass' if good else 'FAIL'}  {line}" for line, good in found))
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())

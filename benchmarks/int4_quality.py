"""How good are our 4-bit codes, stage by stage, against textbook GPTQ and GPTQModel?

    python -m benchmarks.int4_quality [--model DIR] [--bits 4 3] [--text FILE] [--gptqmodel PYTHON]
                                      [--only SUBSTRING ...] [--json FILE]

KL(original || quantized) per token, in nats, on held-out text, symmetric, groups of 128. Every row sees the same
calibration sequences:

    rtn             round to nearest
    textbook        the paper's loop, independent of our code (`benchmarks/first_quality.py`)
    ours: ...       our stages, each on top of those above it
    default less    what `quantkit quantize` does by itself, without one stage: what it is worth beside all others
    gptqmodel: ...  GPTQModel, its defaults and its options, run in an environment of its own (`--gptqmodel` names
                    its interpreter) on the folded model

The text is the standard library, with modules held out by a hash of their path; with --text it is a UTF-8 file, cut
into runs of lines of which every eighth is held out. Both splits are those of the training (`golden/corpus.py`), so
the model has not seen what is measured. Calibration takes training text only.

The table can be made in parts: --only runs the rows whose names hold one of the substrings, and --json adds them to
those that are in the file. A file of other inputs is refused. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gptqmodel_runs
from benchmarks.child import measured
from benchmarks.first_quality import GOLDEN, GROUP, LENGTH, divergence, held_out_rows, ours, textbook, training_samples
from benchmarks.int4_results import Results, inputs_of
from golden.corpus import read_corpus, read_text, split_corpus
from quantkit import registry
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import CalibrationOptions, Samples
from quantkit.methods.gptq import Gptq
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.protocols import Method
from quantkit.solver.stages import Stages
from quantkit.tensors.schemes.affine_groups import AffineGroups


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One of our rows."""

    name: str
    method: Method
    skip_positions: int = CalibrationOptions().skip_positions
    propagate: bool = True
    fisher: bool = False
    smooth: bool | None = None


DEFAULT = "ours: + Fisher"
"""The stage that `quantkit quantize` does by itself."""

FEEDBACK = Gptq(Stages(search=False, act_order=False, rounds=0, damping=0.01))
STAGES = (
    Stage(name="ours: feedback", method=FEEDBACK, skip_positions=0, propagate=False),
    Stage(name="ours: + P-GPTQ", method=FEEDBACK, propagate=False),
    Stage(name="ours: + act-order", method=Gptq(Stages(search=False, rounds=0, damping=0.01)), propagate=False),
    Stage(name="ours: + search", method=Gptq(Stages(rounds=0, damping=0.01)), propagate=False),
    Stage(name="ours: + refine", method=Gptq(Stages(damping=0.01)), propagate=False),
    Stage(name="ours: + damping", method=Gptq(), propagate=False),
    Stage(name="ours: + propagation", method=Gptq()),
    Stage(name=DEFAULT, method=Gptq(), fisher=True),
    Stage(name="ours: + smoothing", method=Gptq(), fisher=True, smooth=True),
    Stage(name="ours: awq", method=registry.method("awq")),
)
WITHOUT = (
    Stage(name="default less P-GPTQ", method=Gptq(), skip_positions=0, fisher=True),
    Stage(name="default less act-order", method=Gptq(Stages(act_order=False)), fisher=True),
    Stage(name="default less search", method=Gptq(Stages(search=False)), fisher=True),
    Stage(name="default less refine", method=Gptq(Stages(rounds=0)), fisher=True),
    Stage(name="default less damping", method=Gptq(Stages(damping=0.01)), fisher=True),
    Stage(name="default less propagation", method=Gptq(), propagate=False, fisher=True),
)
OURS = (*STAGES, *WITHOUT)
NAMES = ("rtn", "textbook", *(stage.name for stage in OURS), *gptqmodel_runs.OPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all rows share. rows: int64 [1, tokens] each, held out. folder: for what GPTQModel reads and writes."""

    checkpoint: Checkpoint
    samples: Samples
    rows: Sequence[torch.Tensor]
    group_size: int
    threads: int
    gptqmodel: Path | None
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A quantized model, and what its maker says about itself."""

    model: MiniCPM
    notes: Mapping[str, Any]


def makers(setting: Setting, bits: int) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Every row that can be made here, by name."""
    rtn = Stage(name="rtn", method=registry.method("rtn"))
    yield rtn.name, partial(by_stage, setting, bits, rtn)
    if setting.group_size == GROUP:
        yield "textbook", lambda: Made(textbook(setting.checkpoint, bits, setting.samples), {})
    for stage in OURS:
        yield stage.name, partial(by_stage, setting, bits, stage)
    if setting.gptqmodel is not None:
        for name in gptqmodel_runs.OPTIONS:
            yield name, partial(by_gptqmodel, setting, bits, name)


def by_stage(setting: Setting, bits: int, stage: Stage) -> Made:
    """The model by our code."""
    run = Quantization(
        setting.checkpoint,
        QuantizeOptions(
            method=stage.method,
            scheme=AffineGroups(bits=bits, group_size=setting.group_size),
            calibration=CalibrationOptions(skip_positions=stage.skip_positions),
            propagate=stage.propagate,
            fisher=stage.fisher,
            smooth=stage.smooth,
        ),
        compute=Compute(threads=setting.threads),
        samples=setting.samples,
    )
    model = ours(setting.checkpoint, run)
    fallbacks = [name for name, tensor in run.report()["tensors"].items() if tensor["fallback"]]
    return Made(model, {"fallbacks": fallbacks})


def by_gptqmodel(setting: Setting, bits: int, name: str) -> Made:
    """The model by GPTQModel, read by our reader from what it wrote."""
    folded, tokens = setting.folder / "llama", setting.folder / "tokens.json"
    out = setting.folder / f"{bits} {name}".replace(" ", "-").replace(":", "")
    if not folded.exists():
        gptqmodel_runs.write_folded(setting.checkpoint, folded)
        gptqmodel_runs.write_tokens(setting.samples.sequences, tokens)
    command = gptqmodel_runs.command(
        setting.gptqmodel or Path(),
        folded,
        tokens,
        out,
        bits=bits,
        group_size=setting.group_size,
        options=gptqmodel_runs.OPTIONS[name],
    )
    measured(command)
    return Made(load_model(registry.open_checkpoint(out)), gptqmodel_runs.used_settings(out))


def prepared(options: argparse.Namespace, folder: Path) -> Setting:
    """Read the model and the text."""
    checkpoint = registry.open_checkpoint(options.model)
    train, held_out = split_corpus(read_text(options.text) if options.text else read_corpus())
    wanted = CalibrationOptions(sequences=options.sequences, length=LENGTH)
    return Setting(
        checkpoint=checkpoint,
        samples=training_samples(checkpoint, train, wanted),
        rows=held_out_rows(options.model, held_out, options.rows),
        group_size=options.group_size,
        threads=options.threads,
        gptqmodel=options.gptqmodel,
        folder=folder,
    )


def measure(setting: Setting, original: MiniCPM, only: Sequence[str], bits: int, results: Results) -> None:
    """Make and measure the rows that are wanted, and keep each as soon as it is there."""
    for name, make in makers(setting, bits):
        if only and not any(part in name for part in only):
            continue
        start = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - start
        kl = divergence(original, made.model, setting.rows)
        results.add(bits, name, {"kl": kl, "seconds": seconds, **made.notes})
        print(f"{bits} bits  {name:30}{kl:.3e}  {seconds:7.1f} s", flush=True)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN, help="any MiniCPM folder")
    parser.add_argument("--text", type=Path, help="UTF-8 text in place of the standard library")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, default=GROUP)
    parser.add_argument("--sequences", type=int, default=60, help=f"of {LENGTH} tokens, to calibrate on")
    parser.add_argument("--rows", type=int, default=64, help=f"held-out sequences of {LENGTH} tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gptqmodel", type=Path, help="interpreter of an environment that has GPTQModel")
    parser.add_argument("--only", nargs="+", default=(), metavar="SUBSTRING", help="rows to run; default: all")
    parser.add_argument("--json", type=Path, help="file that results are added to")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table; return 1 when a target is missed."""
    options = parsed()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        setting = prepared(options, Path(folder))
        coverage = setting.samples.coverage
        print(f"{coverage.sequences} calibration sequences, {coverage.tokens} tokens; {len(setting.rows)} held out")
        inputs = inputs_of(setting.checkpoint, setting.samples.sequences, setting.rows, setting.group_size)
        results = Results(options.json, inputs)
        original = load_model(setting.checkpoint)
        for bits in options.bits:
            measure(setting, original, options.only, bits, results)
    print("\n" + "\n".join(results.table(NAMES)) + "\n")
    verdicts = results.verdicts(DEFAULT, gptqmodel_runs.DEFAULT, tuple(gptqmodel_runs.OPTIONS))
    print("\n".join(verdict.text for verdict in verdicts))
    return int(any(verdict.missed for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())

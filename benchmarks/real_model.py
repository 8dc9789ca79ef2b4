"""What does 4-bit quantization cost a real language model, and do the engines still run what we made of it?

    make real                                              (installs the model, runs its tests, and this)
    python -m benchmarks.real_model [--text FILE ...] [--rows 16] [--engine NAME ...] [--keep DIR]

The model is SmolLM2-135M-Instruct (Llama, byte-level BPE), whose only file on a package index is a GGUF of Q4_1; the
weights that it stands for, as float32, are taken as the original. From it are made, all with groups of 32:

    rtn          `quantkit quantize --method rtn`
    Q4_0         llama.cpp's own rounding of the same weights (`quantkit export gguf --type q4_0`)
    gptq         `quantkit quantize`, calibrated on text that the model writes itself: it sees none of what is measured

Embedding and head stay as they are in all of them. KL(original || quantized) per token, in nats, and perplexity on
windows of 512 tokens of each --text and of the standard library. Then the gptq model is verified in every engine, as
the folder that `quantize` wrote and as a GGUF file. Exits with 1 when gptq is not better than both others on every
text, or an engine disagrees.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import quantkit
from benchmarks.real.model import MISSING, model_file
from benchmarks.real.texts import measured_texts
from quantkit import registry
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.engines import ORACLE
from quantkit.verification.metrics import compared, perplexity

INT4 = quantkit.AffineGroups(bits=4, group_size=32)
ORIGINAL = "original"
OURS = "gptq"
FILES = {ORIGINAL: "original", "rtn": "rtn", OURS: "gptq", "Q4_0": "Q4_0.gguf"}
"""Name of each model of the table to the name of its folder or file."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one model on one text: mean KL from the original in nats, and perplexity."""

    kl: float
    perplexity: float


def make_models(source: Path, folder: Path) -> dict[str, Path]:
    """Every model of the table by its name, made in `folder` by the public interface; what is there already stays."""
    made = {name: folder / file for name, file in FILES.items()}
    if not made[ORIGINAL].exists():
        quantkit.export("hf", source, made[ORIGINAL], quantkit.ExportOptions(type="f32"))
    for method in ("rtn", OURS):
        if not made[method].exists():
            start = time.perf_counter()
            options = quantkit.QuantizeOptions(method=method, scheme=INT4)
            quantkit.quantize(made[ORIGINAL], made[method], options, compute=quantkit.Compute(threads=2))
            print(f"{method}: {time.perf_counter() - start:.0f} s", flush=True)
    if not made["Q4_0"].exists():
        quantkit.export("gguf", made[ORIGINAL], made["Q4_0"], quantkit.ExportOptions(type="q4_0"))
    return made


@torch.inference_mode()
def measured(models: Mapping[str, MiniCPM], sequences: Sequence[np.ndarray]) -> dict[str, Figures]:
    """Figures of each model on one text, the original's logits computed once per sequence."""
    kl: dict[str, list[float]] = {name: [] for name in models}
    surprise: dict[str, list[float]] = {name: [] for name in models}
    for ids in sequences:
        logits = {name: model(torch.from_numpy(ids)[None])[0].numpy() for name, model in models.items()}
        for name, agreement in zip(logits, compared(logits[ORIGINAL], *logits.values()), strict=True):
            kl[name].append(agreement.kl)
            surprise[name].append(float(np.log(perplexity(logits[name], ids.tolist()))))
    return {name: Figures(float(np.mean(kl[name])), float(np.exp(np.mean(surprise[name])))) for name in models}


def table(figures: Mapping[str, Mapping[str, Figures]]) -> Iterator[str]:
    """Markdown: a row per model, KL and perplexity per text."""
    heads = [head for text in figures for head in (f"KL, {text}", f"perplexity, {text}")]
    yield f"| weights | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name in next(iter(figures.values())):
        cells = [cell for text in figures.values() for cell in (f"{text[name].kl:.2e}", f"{text[name].perplexity:.2f}")]
        yield f"| {name} | {' | '.join(cells)} |"


def misses(figures: Mapping[str, Mapping[str, Figures]]) -> Iterator[str]:
    """A line for every text on which another 4-bit model is as good as ours."""
    for text, rows in figures.items():
        for name in set(rows) - {ORIGINAL, OURS}:
            if rows[OURS].kl >= rows[name].kl:
                yield f"{text}: KL of {OURS} {rows[OURS].kl:.2e}, of {name} {rows[name].kl:.2e}"


def verified(made: Mapping[str, Path], folder: Path, engines: Sequence[str] | None) -> Iterator[tuple[str, bool]]:
    """The gptq model as a folder and as a GGUF file, in every engine that is installed and takes it."""
    golden = quantkit.record_golden(made[ORIGINAL], folder / "golden.bin", overwrite=True).path
    as_q4_0 = quantkit.ExportOptions(type="q4_0")
    gguf = quantkit.export("gguf", made[OURS], folder / f"{OURS}.gguf", as_q4_0, overwrite=True).path
    for artifact in (made[OURS], gguf):
        for engine in engines_of(artifact):
            if not engines or engine in engines:
                report = quantkit.verify(artifact, golden=golden, engine=engine)
                yield f"{artifact.name} in {engine}: {report.lines()[-1]}", report.passed


def engines_of(artifact: Path) -> Iterator[str]:
    """The real engines that are installed and take an artifact."""
    checkpoint = quantkit.open_checkpoint(artifact)
    for name in registry.names("runtimes"):
        runtime = registry.runtime(name)
        takes = checkpoint.format in runtime.formats and runtime.refuses(checkpoint) is None
        if name != ORACLE and takes and runtime.missing() is None:
            yield name


def main() -> int:
    """Make, measure, verify; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="UTF-8 files to measure on as well")
    parser.add_argument("--rows", type=int, default=16, help="windows of 512 tokens of each text")
    parser.add_argument("--engine", nargs="+", help="verify in these alone")
    parser.add_argument(
        "--keep", type=Path, help="folder whose models are taken, or made there; default: one that is removed"
    )
    options = parser.parse_args()
    source = model_file()
    if source is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made = make_models(source, folder)
        models = {name: load_model(quantkit.open_checkpoint(path)) for name, path in made.items()}
        tokenizer = open_tokenizer(quantkit.open_checkpoint(made[ORIGINAL]))
        texts = measured_texts(tokenizer, options.text, options.rows)
        figures = {name: measured(models, sequences) for name, sequences in texts.items()}
        print("\n".join(table(figures)), flush=True)
        missed = list(misses(figures))
        for line, passed in verified(made, folder, options.engine):
            print(line, flush=True)
            missed += [] if passed else [line]
    print("\n".join(missed) if missed else "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

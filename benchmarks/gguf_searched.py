"""Does `export gguf --algorithm searched` lose less than llama.cpp's own quantizer at the same bytes, in llama.cpp?

    python -m benchmarks.gguf_searched [--model golden/model golden/untuned] [--only q4_k_m,q2_k] [--rows 16]

Both files are made of the same model without any text; `--algorithm reference` is llama-quantize's file byte for byte
(`gguf_files.py`). llama.cpp runs them and the F32 file on held-out rows of 512 tokens of three kinds of text. Printed
are the KL (x 1e-3) of llama.cpp's own, and for each text ours over it, with the standard error of that ratio by rows.
A name with `!` is made with `--pure`.

Exits with 1 when a ratio over all texts is above 1, or at q4_k_m above 0.93.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import quantkit
from benchmarks.first_quality import held_out_rows
from benchmarks.text_kinds import text_kinds
from golden.corpus import read_corpus
from quantkit import registry
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.verification.metrics import log_softmax

MOST, MOST_AT_Q4_K_M = 1.0, 0.93
KINDS = (*(kind for kind in MIXED if kind != "mxfp4_moe"), "mxfp4_moe!", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
Rows = Mapping[str, Sequence[Sequence[int]]]


def log_probabilities(file: Path, rows: Rows) -> dict[str, list[np.ndarray]]:
    """Of llama.cpp, float32 [T, V] for every row."""
    with registry.runtime("llama-cpp").open(file) as session:
        return {
            kind: [log_softmax(session.logits(row)).astype(np.float32) for row in some] for kind, some in rows.items()
        }


def divergences(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> np.ndarray:
    """Mean KL of every row."""
    pairs = ((one.astype(np.float64), other) for one, other in zip(wanted, found, strict=True))
    return np.array([(np.exp(one) * (one - other)).sum(axis=1).mean() for one, other in pairs])


def ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Of the means, and its standard error by the rows' deviations from it."""
    found = float(ours.mean() / theirs.mean())
    return found, float(np.std(ours - found * theirs) / np.sqrt(len(ours)) / theirs.mean())


def compared(model: Path, kind: str, wanted: Mapping[str, list[np.ndarray]], rows: Rows, folder: Path) -> float:
    """Write both files, print a line; the mean ratio."""
    losses, sizes = [], []
    for algorithm in ("reference", "searched"):
        file = folder / "m.gguf"
        blocks = quantkit.BlockOptions(algorithm=algorithm, pure=kind.endswith("!"))
        options = quantkit.ExportOptions(type=kind.rstrip("!"), blocks=blocks, threads=2)
        quantkit.export("gguf", model, file, options, overwrite=True)
        sizes.append(file.stat().st_size)
        found = log_probabilities(file, rows)
        losses.append({text: divergences(wanted[text], found[text]) for text in rows})
    theirs, ours = losses
    ratios = {text: ratio(ours[text], theirs[text]) for text in rows}
    mean = float(np.mean([found for found, _ in ratios.values()]))
    said = "  ".join(f"{text} {theirs[text].mean() * 1e3:8.3f} {x:.3f} ± {e:.3f}" for text, (x, e) in ratios.items())
    print(f"{model.name:9}{kind:12}{sizes[1] - sizes[0]:+4} bytes  {said}  all {mean:.3f}", flush=True)
    return mean


def main() -> int:
    """Compare all; 1 where ours is no better."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("golden/model"), Path("golden/untuned")])
    parser.add_argument("--only", default=",".join(KINDS), help="file types, with commas")
    parser.add_argument("--rows", type=int, default=16, help="of each text")
    arguments = parser.parse_args()
    texts = text_kinds(read_corpus(), None).measured
    missed = []
    for model in arguments.model:
        rows = {
            text: [row[0].tolist() for row in held_out_rows(model, documents, arguments.rows)]
            for text, documents in texts.items()
        }
        with tempfile.TemporaryDirectory(prefix="quantkit-searched-") as name:
            plain = Path(name) / "plain.gguf"
            quantkit.export("gguf", model, plain, quantkit.ExportOptions(type="f32"))
            wanted = log_probabilities(plain, rows)
            for kind in arguments.only.split(","):
                most = MOST_AT_Q4_K_M if kind == "q4_k_m" else MOST
                if compared(model, kind, wanted, rows, Path(name)) > most:
                    missed.append(f"{model.name} {kind}")
    print(f"missed: {', '.join(missed)}" if missed else "all ratios are within their bounds")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

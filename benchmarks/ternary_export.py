"""What does it cost to write a fake-quantized model of the true MiniCPM4-0.5B shape as GGUF blocks of two bits?

    python -m benchmarks.ternary_export [--model DIR] [--type tq2_0] [--rounds 3]

The model is 868 MB of bfloat16 whose layers are ternary by row (`benchmarks/make_checkpoint.py --ternary`). Each round
takes the processor time of SHA-256 over the weights, then that of the whole command `quantkit export gguf`: start-up,
tokenizer, both passes over the source, fsync, re-reading and hashing of what was written. Medians are compared; the
largest peak of resident memory counts. In the end the codes are read back and compared with the source, value by value.

Exits with 1 when a target is missed or a value differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.child import Cost, measured
from benchmarks.export_speed import MIB, middle, sha256_seconds
from benchmarks.make_checkpoint import make_checkpoint
from quantkit import registry
from quantkit.exporters.gguf.ternary import AS_THEY_STAND
from quantkit.tensors.views import QuantizedView, TensorView, values_view

MAX_SHA256_RATIO = 10.0
MAX_PEAK_MIB = 500


def run(model: Path, kind: str, out: Path, rounds: int) -> tuple[Cost, float]:
    """Median cost of the command, and median SHA-256 seconds; the last output stays at `out`."""
    costs, digests = [], []
    for _ in range(rounds):
        digests.append(sha256_seconds(model / "model.safetensors"))
        command = ["-m", "quantkit", "export", "gguf", model, "--type", kind, "--out", out, "--overwrite"]
        costs.append(measured([sys.executable, *command])[0])
    return middle(costs), sorted(digests)[len(digests) // 2]


def differing(model: Path, artifact: Path) -> int:
    """How many values of quantized layers are not the source's; the embedding, which is rounded, aside."""
    source, written = registry.open_checkpoint(model), registry.open_checkpoint(artifact)
    wrong = 0
    for name, view in written.weights.items():
        dense = source.weights[name]
        if isinstance(view, QuantizedView) and isinstance(dense, TensorView) and ".layers." in name:
            for mine, theirs in zip(values_view(name, view.read()).chunks(), dense.chunks(), strict=True):
                wrong += int(np.count_nonzero(mine != theirs.astype(np.float32)))
    return wrong


def show(cost: Cost, sha256: float, wrong: int) -> bool:
    """Print the figures and the targets; returns whether all are met."""
    print(
        f"SHA-256 of the weights {sha256:.2f} s of processor; export {cost.cpu:.2f} s, {cost.wall:.2f} s of wall time"
    )
    met = True
    for name, found, most in (
        ("processor time of SHA-256's", cost.cpu / sha256, MAX_SHA256_RATIO),
        ("MiB of peak memory", cost.peak_rss / MIB, MAX_PEAK_MIB),
        ("values of the layers that are not the source's", wrong, 0),
    ):
        met &= found <= most
        print(f"{'pass' if found <= most else 'FAIL'}  {found:.4g} {name}, at most {most:g}")
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model when none is given, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder with one model.safetensors (default: made for this run)")
    parser.add_argument("--type", choices=[block.name.lower() for block in AS_THEY_STAND], default="tq2_0")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "minicpm4-0.5b"
        if options.model is None:
            make_checkpoint(model, "minicpm4-0.5b", fake_quantized=True)
        out = Path(name) / "model.gguf"
        cost, sha256 = run(model, options.type, out, options.rounds)
        return 0 if show(cost, sha256, differing(model, out)) else 1


if __name__ == "__main__":
    sys.exit(main())

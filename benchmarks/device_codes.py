"""Does `quantkit quantize --device cuda` make the same model as the CPU does, and how fast?

    python -m benchmarks.device_codes [--devices cpu cuda] [--layers N] [--threads 2]

The golden model and one of the true MiniCPM4-0.5B shape with random weights, calibrated on 16 x 512 tokens, in float32
on both devices, each run in a process of its own as a user starts it. Another device adds its sums in another order.
Where a last bit makes a scale round otherwise, all codes move that make up for it, and those that make up for them: the
codes of later layers differ while their errors do not. Shown are seconds; the share of codes that differ in the first
layers of the model, which see the same inputs, and in all; and the mean of what all layers report as error.

Exits with 1 when the errors lie further apart than a tenth of the second device's gain on rounding to nearest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from benchmarks.child import measured
from benchmarks.gptq_speed import LENGTH, SEQUENCES, write_text
from benchmarks.make_checkpoint import make_checkpoint
from quantkit.models.checkpoint import Checkpoint
from quantkit.registry import open_checkpoint
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One quantization: seconds, what was written, and the mean relative output errors of all layers."""

    wall: float
    written: Checkpoint
    error: float
    error_of_rounding: float


def quantized(model: Path, out: Path, text: Path, device: str, threads: int) -> Run:
    """`quantkit quantize` on `device`."""
    command: list[str | Path] = [sys.executable, "-m", "quantkit", "quantize", model, "--out", out, "--json"]
    command += ["--method", "gptq", "--device", device, "--no-bfloat16", "--threads", str(threads)]
    command += ["--calibration", text, "--samples", str(SEQUENCES), "--length", str(LENGTH)]
    cost, printed = measured(command)
    reports = json.loads(printed)["report"]["tensors"].values()
    error, error_of_rounding = (
        float(np.mean([report[name] for report in reports])) for name in ("error", "error_of_rounding")
    )
    return Run(cost.wall, open_checkpoint(out), error, error_of_rounding)


def different(pairs: Iterable[tuple[QuantizedTensor, QuantizedTensor]]) -> float:
    """The share of codes that are not the same in both tensors of a pair."""
    unequal, total = 0, 0
    for a, b in pairs:
        unequal += np.count_nonzero(a.codes != b.codes)
        total += a.codes.size
    return unequal / total


def pairs(runs: Sequence[Run], pattern: str) -> Iterator[tuple[QuantizedTensor, QuantizedTensor]]:
    """The quantized weights of both runs whose names match, one after the other."""
    first, second = (run.written.weights for run in runs)
    for name, weight in first.items():
        other = second[name]
        if isinstance(weight, QuantizedView) and isinstance(other, QuantizedView) and fnmatchcase(name, pattern):
            yield weight.read(), other.read()


def show(title: str, runs: Mapping[str, Run]) -> bool:
    """Print the lines of one model; returns whether the errors agree."""
    a, b = both = tuple(runs.values())
    print(title)
    for device, run in runs.items():
        print(f"  {device:8}{run.wall:8.1f} s   error {run.error:.4e}, by rounding {run.error_of_rounding:.4e}")
    for what, pattern in (("the first layers", "model.layers.0.self_attn.[qkv]_proj.weight"), ("all layers", "*")):
        print(f"  {different(pairs(both, pattern)):8.3%} of the codes of {what} differ")
    apart = abs(a.error - b.error) / (b.error_of_rounding - b.error)
    verdict = "pass" if apart <= TOLERANCE else "FAIL"
    print(f"  {verdict}  the errors differ by {apart:.2%} of what is gained on rounding, at most {TOLERANCE:.0%}")
    return apart <= TOLERANCE


def main() -> int:
    """Run, compare, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", nargs=2, default=["cpu", "cuda"], help="the same twice: what a repetition shows")
    parser.add_argument("--layers", type=int, help="of the large model, for a trial: fewer than its 24")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    agree = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, large = folder / "text.jsonl", folder / "large"
        write_text(text)
        make_checkpoint(large, "minicpm4-0.5b", layers=options.layers)
        for title, model in (("golden model", ROOT / "golden" / "model"), ("MiniCPM4-0.5B shape", large)):
            runs = {}
            for number, device in enumerate(options.devices):
                out = folder / f"{model.name}-{number}"
                runs[f"{number} {device}"] = quantized(model, out, text, device, options.threads)
            agree &= show(title, runs)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())

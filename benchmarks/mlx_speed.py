"""What exporting a quantized MiniCPM4-0.5B to MLX costs, and what `mlx_lm.convert -q` takes beside it.

    python -m benchmarks.mlx_speed [--model DIR] [--rounds 3]

From one dense source of the true 0.5B shape (868 MB, made for the run unless given). `export` is `quantkit export mlx`
of a folder that is quantized already, in processor time beside SHA-256 over the bytes that it reads and writes. `rtn`
is `quantkit quantize --method rtn` and that export; `mlx_lm.convert -q` makes its 4 bits in groups of 64 of the same
model, folded into a Llama. Each runs in a process of its own, as a user would start it; medians of all rounds. Exits
with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.child import Cost, measured
from benchmarks.export_speed import MIB, middle, sha256_seconds
from benchmarks.make_checkpoint import make_checkpoint

MAX_SHA256_RATIO, MAX_PEAK_MIB, MIN_THEIR_RATIO = 8.0, 600, 1.6


def once(model: Path, llama: Path, folder: Path) -> dict[str, Cost]:
    """Every command once; what they make stays in `folder` until the next round."""
    made = {name: folder / name for name in ("run", "export", "theirs")}
    for path in made.values():
        shutil.rmtree(path, ignore_errors=True)
    quantize = ["quantize", model, "--method", "rtn", "--bits", "4", "--group-size", "64", "--out", made["run"]]
    theirs = ["--hf-path", llama, "--mlx-path", made["theirs"], "-q", "--q-bits", "4", "--q-group-size", "64"]
    commands: dict[str, list[str | Path]] = {
        "quantize rtn": ["-m", "quantkit", *quantize],
        "export": ["-m", "quantkit", "export", "mlx", made["run"], "--out", made["export"]],
        "mlx_lm.convert": ["-m", "mlx_lm", "convert", *theirs],
    }
    offline = {"HF_HUB_OFFLINE": "1"}
    return {name: measured([sys.executable, *command], environment=offline)[0] for name, command in commands.items()}


def digest_seconds(folder: Path) -> float:
    """SHA-256 over the weights that the export reads and writes."""
    files = [*(folder / "run").glob("*.safetensors"), *(folder / "export").glob("*.safetensors")]
    return sum(map(sha256_seconds, files))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say with the exit code whether every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="quantkit-mlx-") as name:
        folder = Path(name)
        model = asked.model or folder / "model"
        if asked.model is None:
            make_checkpoint(model, "minicpm4-0.5b")
        fold = ["-m", "quantkit", "export", "hf", model, "--arch", "llama", "--out", folder / "llama"]
        measured([sys.executable, *fold])
        rounds, digests = [], []
        for _ in range(asked.rounds):
            rounds.append(once(model, folder / "llama", folder))
            digests.append(digest_seconds(folder))
    return show(
        {name: middle([costs[name] for costs in rounds]) for name in rounds[0]}, sorted(digests)[len(digests) // 2]
    )


def show(costs: dict[str, Cost], sha256: float) -> int:
    """Print the table; 0 when every target is met."""
    print("| command | CPU s | wall s | peak MiB |\n|---|---:|---:|---:|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.cpu:.1f} | {cost.wall:.1f} | {cost.peak_rss / MIB:.0f} |")
    export = costs["export"]
    ratio, peak = export.cpu / sha256, export.peak_rss / MIB
    theirs = costs["mlx_lm.convert"].cpu / (export.cpu + costs["quantize rtn"].cpu)
    print(f"\nexport: {ratio:.1f} x SHA-256 (at most {MAX_SHA256_RATIO:g}), {peak:.0f} MiB (at most {MAX_PEAK_MIB})")
    print(f"mlx_lm.convert: {theirs:.2f} x the CPU time of rtn and export (at least {MIN_THEIR_RATIO:g})")
    return 0 if ratio <= MAX_SHA256_RATIO and peak <= MAX_PEAK_MIB and theirs >= MIN_THEIR_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long does `quantkit export gguf` take from a checkpoint to Q4_K_M, beside llama.cpp's two steps?

    python -m benchmarks.gguf_speed --converter PATH/convert_hf_to_gguf.py --llama-quantize PATH [--model DIR]
        [--rounds 2] [--threads 2] [--only q4_k_m,q4_0] [--searched]

On a model of the 0.5B shape, in turns, each in a process of its own: `--algorithm reference` (the same bytes as
llama-quantize's), with `--searched` also `--algorithm searched`, and llama.cpp's converter to F16 followed by
llama-quantize. Printed are medians of wall and processor seconds, the largest peak of memory, and the ratio of wall
times, which may be 1 for Q4_K_M and 0.5 for Q4_0, on 600 MiB; and whether numba was there. Where the two programs come
from is told in `export_speed.py` and `gguf_files.py`; without them only our side is measured, and the reason printed.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.child import Cost, measured
from benchmarks.export_speed import MIB, middle
from benchmarks.make_checkpoint import make_checkpoint

MAX_WALL_RATIOS = {"q4_k_m": 1.0, "q4_0": 0.5}
MAX_PEAK_MIB = 600
REFERENCE, SEARCHED, THEIRS = "reference", "searched", "two steps"


def ours(model: Path, kind: str, algorithm: str, folder: Path, threads: int) -> Cost:
    """One export, with the re-reading and hashing of the file."""
    words = ["--type", kind, "--algorithm", algorithm, "--threads", str(threads), "--overwrite"]
    command = [sys.executable, "-m", "quantkit", "export", "gguf", model, *words, "--out", folder / "ours.gguf"]
    return measured(command)[0]


def theirs(model: Path, kind: str, tools: tuple[Path, Path], folder: Path, threads: int) -> Cost:
    """The converter to F16 and llama-quantize, one after the other."""
    converter, quantizer = tools
    plain, out = folder / "plain.gguf", folder / "theirs.gguf"
    first, _ = measured([sys.executable, converter, model, "--outtype", "f16", "--outfile", plain])
    second, _ = measured([quantizer, plain, out, kind.upper(), str(threads)])
    plain.unlink()
    return Cost(first.wall + second.wall, first.cpu + second.cpu, max(first.peak_rss, second.peak_rss))


def show(kind: str, costs: dict[str, Cost]) -> bool:
    """Print a line for each; whether the targets are met."""
    for name, cost in costs.items():
        ratio = f"{cost.wall / costs[THEIRS].wall:8.2f} x" if THEIRS in costs else ""
        print(f"{kind:8}{name:12}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.peak_rss / MIB:10.0f}{ratio}")
    targets = [("MiB of peak memory", costs[REFERENCE].peak_rss / MIB, MAX_PEAK_MIB)]
    if THEIRS in costs and kind in MAX_WALL_RATIOS:
        ratio = costs[REFERENCE].wall / costs[THEIRS].wall
        targets.append(("of the wall time of two steps", ratio, MAX_WALL_RATIOS[kind]))
    for name, found, most in targets:
        print(f"        {'pass' if found <= most else 'FAIL'}  {found:.2f} {name}, at most {most:g}")
    return all(found <= most for _, found, most in targets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model when none is given, measure in turns, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--model", type=Path, help="folder with a dense model (default: made for this run)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="q4_k_m,q4_0", help="types, with commas")
    parser.add_argument("--searched", action="store_true", help="measure the searched algorithm as well")
    options = parser.parse_args(arguments)
    given = [tool for tool in (options.converter, options.llama_quantize) if tool is not None and tool.exists()]
    if len(given) < 2:
        print("skipped: llama.cpp's two steps, which need --converter and --llama-quantize, both existing files")
    print(f"numba: {'installed' if importlib.util.find_spec('numba') else 'absent'}")
    print("type    program       wall s   CPU s  peak MiB   wall x")
    met = True
    with tempfile.TemporaryDirectory(prefix="quantkit-speed-") as name:
        folder = Path(name)
        model = options.model or folder / "minicpm4-0.5b"
        if options.model is None:
            make_checkpoint(model, "minicpm4-0.5b")
        for kind in options.only.split(","):
            costs: dict[str, list[Cost]] = {}
            for _ in range(options.rounds):
                for algorithm in (REFERENCE, *((SEARCHED,) if options.searched else ())):
                    os.sync()  # what another left unwritten is not this one's cost
                    costs.setdefault(algorithm, []).append(ours(model, kind, algorithm, folder, options.threads))
                if len(given) == 2:
                    os.sync()
                    found = theirs(model, kind, (given[0], given[1]), folder, options.threads)
                    costs.setdefault(THEIRS, []).append(found)
            met &= show(kind, {name: middle(found) for name, found in costs.items()})
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

"""How fast is `quantkit export gguf` beside llama.cpp's own converter, on a model of the true MiniCPM4-0.5B shape?

    python -m benchmarks.export_speed --converter PATH/convert_hf_to_gguf.py [--model DIR] [--rounds 3]

Both write F16 and Q8_0 from the same 868 MB checkpoint, in turns, each in a process of its own as a user would start
it; start-up, and for quantkit fsync, re-reading and hashing of the output, are included. Medians are shown, beside
the processor time that SHA-256 over the input takes in the same run. In the end the two outputs are compared tensor by
tensor: equal bytes mean that both did the same work.

The converter comes with the source package of llama-cpp-python, and needs torch, transformers and sentencepiece:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz        # vendor/llama.cpp/convert_hf_to_gguf.py

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.child import Cost, measured
from benchmarks.make_checkpoint import make_checkpoint

TYPES = ("f16", "q8_0")
MAX_WALL_RATIO = 0.5
MAX_CPU_RATIO = 0.5
MAX_SHA256_RATIO = 8.0
MAX_PEAK_MIB = 500
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one program writing one type."""

    program: str
    type: str
    cost: Cost


def sha256_seconds(path: Path) -> float:
    """Processor seconds of SHA-256 over the file, reading included."""
    start = time.process_time()
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return time.process_time() - start


def middle(costs: Sequence[Cost]) -> Cost:
    """Median of each figure by itself; the largest peak."""
    return Cost(
        median(cost.wall for cost in costs), median(cost.cpu for cost in costs), max(cost.peak_rss for cost in costs)
    )


def run(model: Path, converter: Path, folder: Path, rounds: int) -> tuple[list[Row], float]:
    """Measure both programs in turns; returns the rows and the SHA-256 seconds. The last outputs stay in `folder`."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    digests = []
    for _ in range(rounds):
        digests.append(sha256_seconds(model / "model.safetensors"))
        for kind in TYPES:
            out = {program: folder / f"{program}-{kind}.gguf" for program in ("quantkit", "converter")}
            commands: dict[str, list[str | Path]] = {
                "quantkit": ["-m", "quantkit", "export", "gguf", model, "--type", kind, "--out", out["quantkit"]],
                "converter": [converter, model, "--outtype", kind, "--outfile", out["converter"]],
            }
            for program, command in commands.items():
                out[program].unlink(missing_ok=True)
                out[program].with_name(out[program].name + ".quantkit.json").unlink(missing_ok=True)
                os.sync()  # what the other left unwritten is not this one's cost
                cost, _ = measured([sys.executable, *command])
                costs.setdefault((program, kind), []).append(cost)
    return [Row(program, kind, middle(found)) for (program, kind), found in costs.items()], median(digests)


def show(rows: Sequence[Row], sha256: float, *, input_bytes: int) -> bool:
    """Print the table and the targets; returns whether all are met."""
    print(f"SHA-256 of the input, {input_bytes:,} bytes: {sha256:.2f} s of processor\n")
    print("type  program     wall s   CPU s  peak MiB   wall x   CPU x  CPU / SHA-256")
    met = True
    for kind in TYPES:
        costs = {row.program: row.cost for row in rows if row.type == kind}
        ours, theirs = costs["quantkit"], costs["converter"]
        for program, cost in costs.items():
            print(
                f"{kind:6}{program:10}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.peak_rss / MIB:10.0f}"
                f"{cost.wall / theirs.wall:9.2f}{cost.cpu / theirs.cpu:8.2f}{cost.cpu / sha256:15.2f}"
            )
        targets = (
            ("wall time of the converter's", ours.wall / theirs.wall, MAX_WALL_RATIO),
            ("processor time of the converter's", ours.cpu / theirs.cpu, MAX_CPU_RATIO),
            ("processor time of SHA-256's", ours.cpu / sha256, MAX_SHA256_RATIO),
            ("MiB of peak memory", ours.peak_rss / MIB, MAX_PEAK_MIB),
        )
        for name, found, most in targets:
            met &= found <= most
            print(f"      {'pass' if found <= most else 'FAIL'}  {found:.2f} {name}, at most {most:g}")
    return met


def compare(folder: Path, kind: str) -> bool:
    """Print how many tensors of the two outputs have equal bytes; returns whether all have."""
    from gguf import GGUFReader  # noqa: PLC0415 - maps whole files, which would count as memory of later children

    ours, theirs = (
        {tensor.name: tensor for tensor in GGUFReader(folder / f"{program}-{kind}.gguf").tensors}
        for program in ("quantkit", "converter")
    )
    equal = [
        name
        for name in ours.keys() & theirs.keys()
        if ours[name].tensor_type == theirs[name].tensor_type
        and ours[name].data.tobytes() == theirs[name].data.tobytes()
    ]
    print(f"{kind}: {len(equal)} of {len(theirs)} tensors equal byte for byte")
    return len(equal) == len(ours) == len(theirs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model when none is given, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--model", type=Path, help="folder with one model.safetensors (default: made for this run)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or folder / "minicpm4-0.5b"
        if options.model is None:
            make_checkpoint(model, "minicpm4-0.5b")
        rows, sha256 = run(model, options.converter, folder, options.rounds)
        met = show(rows, sha256, input_bytes=(model / "model.safetensors").stat().st_size)
        print()
        same = [compare(folder, kind) for kind in TYPES]
    return 0 if met and all(same) else 1


if __name__ == "__main__":
    sys.exit(main())

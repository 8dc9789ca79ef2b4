"""Does `quantkit plan` answer at once on a large model, from headers alone, with the sizes that are then written?

    python -m benchmarks.plan_speed [--rounds 5] [--model DIR ...]

1. Wall time of `quantkit plan` on an 8B-shaped checkpoint of sparse files, for every format and type.
2. Bytes that the same command reads from the weight files, counted by `strace` (Linux; must be installed): the
   headers, and nothing else.
3. For the golden model and a checkpoint of the true MiniCPM4-0.5B shape: the planned size of every format and type,
   from the dense model and from a 4-bit one, beside the size of what `quantkit export` then writes.

Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.child import measured
from benchmarks.make_checkpoint import make_checkpoint
from quantkit import registry
from quantkit.artifacts.manifest import MANIFEST_NAME

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "model"
QUANTKIT = (sys.executable, "-m", "quantkit")
QUANTIZE = ("--method", "rtn", "--bits", "4", "--group-size", "128")
MAX_SECONDS = 2.0
READS = "read,pread64,readv,preadv,preadv2,sendfile,copy_file_range,mmap"


def targets() -> list[str]:
    """Every FORMAT:TYPE that can be written, and FORMAT alone where it has no types."""
    names = registry.names("exporters")
    return [f"{name}:{kind}" if kind else name for name in names for kind in (registry.exporter(name).types or ("",))]


def plan(model: Path, wanted: Sequence[str], *options: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds and answer of `quantkit plan`; a target that is refused does not fail it."""
    command: list[str | Path] = [*QUANTKIT, "plan", model, "--to", ",".join(wanted), *options, "--json"]
    cost, shown = measured(command, expected=(0, 2))
    answer: dict[str, Any] = json.loads(shown)
    return cost.wall, answer


def check_time(model: Path, rounds: int) -> bool:
    """Print the median wall time of a plan for all targets; returns whether it is short enough."""
    met = True
    for options in ((), QUANTIZE, ("--method", "gptq")):
        seconds = median(plan(model, targets(), *options)[0] for _ in range(rounds))
        met &= seconds < MAX_SECONDS
        what = " ".join(("plan", f"({len(targets())} targets)", *options))
        print(f"{'pass' if seconds < MAX_SECONDS else 'FAIL'}  {seconds:.2f} s, less than {MAX_SECONDS:g}: {what}")
    return met


def check_reads(model: Path, folder: Path) -> bool:
    """Print the bytes read from the weight files; returns whether they are the headers' and no file was mapped."""
    trace = folder / "trace"
    strace = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={READS}"]
    measured(
        [*strace, *QUANTKIT, "plan", str(model), "--to", ",".join(targets()), *QUANTIZE, "--json"], expected=(0, 2)
    )
    shards = sorted(model.glob("*.safetensors"))
    headers = sum(header_bytes(path) for path in shards)
    calls = [line for line in trace.read_text(errors="replace").splitlines() if ".safetensors>" in line]
    mapped = [line for line in calls if "mmap(" in line]
    count = sum(int(found.group(1)) for line in calls if (found := re.search(r"= (\d+)$", line)))
    data = sum(path.stat().st_size for path in shards) - headers
    met = bool(calls) and not mapped and count <= 2 * headers
    print(
        f"{'pass' if met else 'FAIL'}  {count:,} bytes read from {len(shards)} weight files in {len(calls)} calls, "
        f"{len(mapped)} of them maps; their headers have {headers:,}, their tensors {data:,}"
    )
    return met


def header_bytes(path: Path) -> int:
    """Bytes before the data of a safetensors file."""
    with path.open("rb") as file:
        length: int = struct.unpack("<Q", file.read(8))[0]
    return 8 + length


def check_sizes(model: Path, folder: Path) -> bool:
    """Print planned and written sizes of every target of `model`; returns whether all agree."""
    quantized = folder / "int4"
    [made] = plan(model, ["compressed-tensors"], *QUANTIZE)[1]["targets"]
    measured([*QUANTKIT, "quantize", model, *QUANTIZE, "--out", quantized])
    rows = [(f"int4 of {model.name}", "compressed-tensors", made["size"], written(quantized))]
    rows += (row for source in (model, quantized) for row in exported(source, folder))
    for source, name, planned, found in rows:
        print(f"{'pass' if planned == found else 'FAIL'}  {source:24}{name:32}{planned:>15,}{found:>15,}")
    shutil.rmtree(quantized)
    return all(planned == found for _, _, planned, found in rows)


def exported(source: Path, folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """(source, target, planned bytes, written bytes) of every target that does not refuse `source`."""
    for arch in ("native", "llama"):
        for target in plan(source, targets(), "--arch", arch)[1]["targets"]:
            if target["refusal"]:
                continue
            out = folder / "exported-int4"  # an engine of one container knows it by such a word
            kind = () if target["type"] == "default" else ("--type", target["type"])
            measured([*QUANTKIT, "export", target["format"], source, *kind, "--arch", arch, "--out", out])
            name = f"{target['format']} {target['type']} {arch}"
            yield source.name, name, target["size"], written(out)
            remove(out)


def written(path: Path) -> int:
    """Bytes of an artifact, its manifest aside."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if file.name != MANIFEST_NAME)


def remove(path: Path) -> None:
    """Remove an artifact and its manifest."""
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink()
    path.with_name(f"{path.name}.{MANIFEST_NAME}").unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the checkpoints, check time, reads and sizes, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="plans timed")
    parser.add_argument("--model", type=Path, action="append", help="check sizes on this one (default: both)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = folder / "minicpm4-8b"
        make_checkpoint(large, "minicpm4-8b", sparse=True)
        met = [check_time(large, options.rounds), check_reads(large, folder)]
        models = options.model
        if models is None:
            models = [GOLDEN, folder / "minicpm4-0.5b"]
            make_checkpoint(models[1], "minicpm4-0.5b")
        print(f"\n      {'source':24}{'target':32}{'planned bytes':>15}{'written bytes':>15}")
        met += [check_sizes(model, folder) for model in models]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Do two checkouts of quantkit write the same bytes?

    python -m benchmarks.artifact_bytes --tree OLD_CHECKOUT > before.txt
    python -m benchmarks.artifact_bytes --against before.txt

A checkout writes every container of the golden model, dense and quantized, through its own command line, and prints the
SHA-256 of every file; of what it refuses, the exit code. Manifests and model cards are left out: they name versions and
record what later checkouts know to say. With `--against` only what differs is printed, and the exit code is 1 if
anything does.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CALIBRATION = ("--samples", "8", "--length", "128")
RUNS: dict[str, tuple[str, ...]] = {
    "rtn4": ("--method", "rtn"),
    "rtn4-g32-asym": ("--method", "rtn", "--group-size", "32", "--asym"),
    "rtn3-g64-asym": ("--method", "rtn", "--bits", "3", "--group-size", "64", "--asym"),
    "rtn8-row": ("--method", "rtn", "--bits", "8", "--group-size", "-1"),
    "rtn5-g32": ("--method", "rtn", "--bits", "5", "--group-size", "32"),
    "rtn2-llama": ("--method", "rtn", "--bits", "2", "--group-size", "64", "--arch", "llama"),
    "gptq4": ("--method", "gptq", *CALIBRATION),
    "gptq3-g32-asym": ("--method", "gptq", "--bits", "3", "--group-size", "32", "--asym", *CALIBRATION),
    "gptq4-smooth": ("--method", "gptq", "--smooth", "--no-fisher", "--no-propagate", *CALIBRATION),
    "awq4": ("--method", "awq", *CALIBRATION),
}
QUANTIZED_EXPORTS: dict[str, tuple[str, ...]] = {
    "gguf-q4_0": ("gguf", "--type", "q4_0"),
    "gguf-q4_1": ("gguf", "--type", "q4_1"),
    "gguf-q5_0": ("gguf", "--type", "q5_0"),
    "gguf-q8_0": ("gguf", "--type", "q8_0"),
    "gptq-v1": ("gptq", "--type", "v1"),
    "gptq-v2": ("gptq", "--type", "v2"),
    "awq": ("awq",),
    "marlin": ("marlin", "--target", "ist"),
    "ct-llama": ("compressed-tensors", "--arch", "llama"),
    "hf": ("hf",),
}
"""What every quantized folder is exported to; a refusal is compared as well."""
DENSE_EXPORTS: dict[str, tuple[str, ...]] = {
    f"{container}-{kind}-{arch}": (container, "--type", kind, "--arch", arch)
    for container, kinds in {
        "hf": ("bf16", "f16", "f32"),
        "gguf": ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
    }.items()
    for kind in kinds
    for arch in ("native", "llama")
}


def run(tree: Path, python: str, *arguments: str) -> int:
    """Run one command of the checkout `tree`; returns the exit code."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [python, "-m", "quantkit", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False).returncode


def digests(artifact: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest."""
    files = sorted(artifact.iterdir()) if artifact.is_dir() else [artifact] if artifact.exists() else []
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not file.name.endswith("quantkit.json") and file.name not in ("README.md", "LICENSE")
    }


def written(tree: Path, python: str, model: Path, out: Path) -> dict[str, dict[str, str]]:
    """Digests of everything that the checkout `tree` writes."""
    found = {}

    def export(source: Path, name: str, arguments: tuple[str, ...]) -> None:
        target = out / (f"{name}.gguf" if arguments[0] == "gguf" else f"{name}-gptq")
        code = run(tree, python, "export", arguments[0], str(source), "--out", str(target), *arguments[1:])
        found[name] = digests(target) or {"exit code": str(code)}

    for name, arguments in DENSE_EXPORTS.items():
        export(model, name, arguments)
    for name, arguments in RUNS.items():
        folder = out / name
        code = run(tree, python, "quantize", str(model), "--out", str(folder), *arguments)
        found[name] = digests(folder) or {"exit code": str(code)}
        for kind, exported in QUANTIZED_EXPORTS.items():
            export(folder, f"{name}-{kind}", exported)
    return found


def main() -> None:
    """Print the digests of one checkout, or what differs from those of another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path(), help="the checkout that writes")
    parser.add_argument("--model", type=Path, default=Path("golden/model"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--against", type=Path, help="what another checkout printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantkit-bytes-") as folder:
        found = written(options.tree.resolve(), options.python, options.model.resolve(), Path(folder))
    lines = [f"{name}/{file} {digest}" for name, files in found.items() for file, digest in files.items()]
    if options.against is None:
        print("\n".join(lines))
        return
    before, after = set(options.against.read_text().splitlines()), set(lines)
    for mark, changed in (("-", before - after), ("+", after - before)):
        for line in sorted(changed):
            print(mark, line)
    print(f"{len(found)} artifacts and refusals, {len(lines)} files; {len(before & after)} of them the same")
    sys.exit(0 if before == after else 1)


if __name__ == "__main__":
    main()

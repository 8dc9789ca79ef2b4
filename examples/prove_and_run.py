"""Record what a model predicts, prove that a GGUF of it still does, and let the GGUF write.

python examples/prove_and_run.py MODEL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import quantkit


def main(model: str, out: str) -> None:
    """Write a golden file and an artifact, verify the one by the other, and print what it writes."""
    folder = Path(out)
    folder.mkdir()
    quantkit.record_golden(model, folder / "golden.bin")
    artifact = quantkit.export("gguf", model, folder / "model-q8_0.gguf", quantkit.ExportOptions(type="q8_0"))
    report = quantkit.verify(artifact.path, golden=folder / "golden.bin")
    print(*report.lines(), sep="\n")
    assert report.passed
    for piece in quantkit.generate(artifact.path, "def area(width, height):", quantkit.Sampling(max_tokens=24)):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Quantize a model, prove that it still is the model, look at the proof as a page, and let it write.

python examples/quantize_and_verify.py MODEL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import quantkit


def main(model: str, out: str) -> None:
    """Write a quantized folder, what is recorded of the original, and a report; print the proof and some text."""
    folder = Path(out)
    folder.mkdir()
    options = quantkit.QuantizeOptions(method="rtn", scheme=quantkit.AffineGroups(bits=4, group_size=128))
    run = quantkit.quantize(model, folder / "int4", options)
    quantkit.record_golden(model, folder / "golden.bin")
    report = quantkit.verify(run.path, golden=folder / "golden.bin", engine="reference", prompts=3)
    print(*report.lines(), sep="\n")
    assert report.passed
    quantkit.report_page(
        [run.path], folder / "report.html", golden=folder / "golden.bin", engine="reference", prompts=3
    )
    print("the card that a hub reads:", *quantkit.model_card(run.path).splitlines()[:12], sep="\n")
    for piece in quantkit.generate(run.path, "import json", quantkit.Sampling(max_tokens=16)):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Quantize a model once, and carry the same codes to a phone (GGUF) and to a server (GPTQ).

    python examples/one_run_many_devices.py MODEL OUT

MODEL is a folder as it comes from the Hub, such as golden/model; OUT is a folder to make.
"""

from __future__ import annotations

import sys
from pathlib import Path

import quantkit


def main(model: str, out: str) -> None:
    """Write a folder and three exports of it that hold the same numbers."""
    folder = Path(out)
    folder.mkdir()
    options = quantkit.QuantizeOptions(
        method="gptq",
        scheme=quantkit.AffineGroups(bits=4, group_size=128),
        calibration=quantkit.CalibrationOptions(sequences=8, length=128),
    )
    run = quantkit.quantize(model, folder / "int4", options, compute=quantkit.Compute(threads=2))
    worst = max(run.manifest["report"]["tensors"].items(), key=lambda item: item[1]["error"])
    print(f"{run.path}: {run.size:,} bytes; the worst layer is {worst[0]}, with an error of {worst[1]['error']:.1e}")
    exports = {"gguf": "int4.gguf", "gptq": "int4-gptq", "mlx": "int4-mlx"}
    for container, name in exports.items():
        done = quantkit.export(container, run.path, folder / name)
        print(f"{done.path}: {done.size:,} bytes, {quantkit.loads_in(done.path)}")

    # mlx-lm gets a folded model, some of whose matrices are multiplied by powers of two; this one is the same in all.
    original = quantkit.open_checkpoint(folder / "int4").weights
    for name in exports.values():
        weights = quantkit.open_checkpoint(folder / name).weights
        tensor = "model.layers.0.mlp.up_proj.weight"
        assert weights[tensor].read().numbers_digest() == original[tensor].read().numbers_digest()
    print("all of them hold the same numbers")


if __name__ == "__main__":
    main(*sys.argv[1:])

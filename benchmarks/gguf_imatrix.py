"""Does `quantkit imatrix` measure what llama-imatrix measures on the same tokens?

    python -m benchmarks.gguf_imatrix --llama-imatrix PATH --text FILE [--model golden/model golden/untuned]

Both measure every model on the same text, of at most 64K characters, so that both split it at once. llama-imatrix reads
the f32 GGUF; once with keys and values in float32 and no flash attention, and once as it does by default, with both in
float16. Ours computes in float32, and in bfloat16. Printed are, of every pair, the largest and the mean relative
difference of a column's mean square. `gguf_files.py` tells how the tool is built.

Exits with 1 when names, counts or texts differ, or in float32 a column by more than 1e-3.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import quantkit
from quantkit.exporters.gguf.container.file import read_gguf
from quantkit.exporters.gguf.imatrix.reading import read_importance

LIMIT = 1e-3
COMMON = ("-t", "1", "--no-ppl", "--process-output")
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")


def difference(one: Path, other: Path) -> tuple[float, float]:
    """Largest and mean relative difference of a column; 1 where the files do not tell of the same."""
    a, b = read_importance(one), read_importance(other)
    if a.weights.keys() != b.weights.keys() or (a.chunks, a.texts) != (b.chunks, tuple(Path(t).name for t in b.texts)):
        return 1.0, 1.0
    parts = [np.abs(a.weights[name] / values - 1) for name, values in b.weights.items()]
    joined = np.concatenate(parts)
    return float(joined.max()), float(joined.mean())


def main() -> int:
    """Compare all; 1 where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-imatrix", required=True, metavar="PATH")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("golden/model"), Path("golden/untuned")])
    arguments = parser.parse_args()
    alike = True
    print(f"{'model':10}{'ours':10}{'llama-imatrix':16}{'largest':>10}{'mean':>10}")
    for model in arguments.model:
        with tempfile.TemporaryDirectory(prefix="quantkit-imatrix-") as name:
            folder = Path(name)
            quantkit.export("gguf", model, folder / "plain.gguf", quantkit.ExportOptions(type="f32"))
            head = "output.weight" in read_gguf(folder / "plain.gguf").tensors
            for kind in ("float32", "bfloat16"):
                compute = quantkit.Compute(bfloat16=kind == "bfloat16")
                quantkit.measure_importance(model, arguments.text, folder / kind, process_output=head, compute=compute)
            for kind, words in (("exact.gguf", EXACT), ("default.gguf", ())):
                said = [arguments.llama_imatrix, "-m", folder / "plain.gguf", "-f", arguments.text, *COMMON]
                subprocess.run([*said, *words, "-o", folder / kind], check=True, capture_output=True)
            for one, other in (("float32", "exact.gguf"), ("float32", "default.gguf"), ("bfloat16", "exact.gguf")):
                largest, mean = difference(folder / one, folder / other)
                alike &= largest < (LIMIT if (one, other) == ("float32", "exact.gguf") else 1)
                print(f"{model.name:10}{one:10}{other:16}{largest:10.1e}{mean:10.1e}", flush=True)
    print("both measure the same" if alike else "THEY DIFFER")
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())

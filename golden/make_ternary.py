"""Make the ternary golden model from the calm one: quantized to three levels, then trained on the same text.

    python golden/make_ternary.py [--steps 800] [--threads 2] [--out DIR]

`golden/ternary` is what BitCPM publishes: a bfloat16 checkpoint whose linear weights have the values -s, 0 and s of
their row. `golden/ternary.json` holds the SHA-256 of its tensors as GGUF's TQ2_0, which an export must have
(`tests/test_golden_ternary.py`), and what the training has measured. The text is the calm model's own (`corpus.py`).

The same steps, processor kind and library versions give the same weights.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import quantkit
from golden.corpus import read_corpus, split_corpus
from golden.tensor_digest import tensors_digest

GOLDEN = Path(__file__).resolve().parent
FILES = ("quantkit.json", "configuration_minicpm.py")
"""What an export writes beside the checkpoint, and BitCPM does not publish."""


class Lines:
    """Prints progress once a minute."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, what: str, done: float, total: float, /) -> None:
        """See `quantkit.progress.Progress`."""
        if time.monotonic() > self._last + 60:
            self._last = time.monotonic()
            print(f"{what}, {done / total:.0%}", flush=True)


def main() -> None:
    """Train, export, and write down what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=GOLDEN / "ternary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "corpus.jsonl"
        training, _ = split_corpus(read_corpus())
        file.write_text("".join(json.dumps({"text": item.text}) + "\n" for item in training), encoding="utf-8")
        done = quantkit.recover(
            GOLDEN / "model",
            folder / "recovered",
            quantkit.QuantizeOptions(method="ternary"),
            quantkit.TrainingOptions(files=(file,), steps=arguments.steps),
            compute=quantkit.Compute(threads=arguments.threads, bfloat16=False),
            progress=Lines(),
        )
        assert done is not None
        quantkit.export("hf", done.path, folder / "ternary", quantkit.ExportOptions(type="bf16"))
        for name in FILES:
            (folder / "ternary" / name).unlink()
        shutil.rmtree(arguments.out, ignore_errors=True)
        shutil.copytree(folder / "ternary", arguments.out)
        gguf = quantkit.export("gguf", arguments.out, folder / "t.gguf", quantkit.ExportOptions(type="tq2_0")).path
        facts = {
            "steps": arguments.steps,
            "measured": done.manifest["report"]["training"]["measured"],
            "tq2_0": tensors_digest(gguf),
        }
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()

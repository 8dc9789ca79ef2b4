"""How good are our codes, on the text that was calibrated on and on others, beside textbook GPTQ and GPTQModel?

    python -m benchmarks.int4_quality [--model DIR] [--text FILE] [--bits 4 3 2] [--group-size 128]
                                      [--gptqmodel PYTHON] [--only SUBSTRING ...] [--json FILE]

KL(original || quantized) per token, in nats, symmetric, on held-out text of three kinds: one that a calibration file
is of (prose), and two that no row has seen (Python sources, C headers: `benchmarks/text_kinds.py`). Every row sees the
same number of sequences:

    rtn             round to nearest
    textbook        the paper's loop on the file, independent of our code (`benchmarks/first_quality.py`)
    ours: ...       our stages on the file, each on top of those above it
    file alone      the last of them: what `quantkit quantize --calibration FILE --only-files` does
    less ...        the same without one stage: what it is worth beside all others
    default         what `quantkit quantize` does by itself, on text that the model writes
    default + file  what `quantkit quantize --calibration FILE` does: half of the sequences are of the file
    gptqmodel: ...  GPTQModel on the file, its defaults and its options, run in an environment of its own
                    (`--gptqmodel` names its interpreter) on the folded model

The golden models were trained on what is calibrated on here and not on what is measured (`golden/corpus.py`). A model
that was trained on another text is given that with --text, a UTF-8 file: it is cut into runs of lines, of which every
eighth is measured on and the others are the calibration file.

The table can be made in parts: --only runs the rows of those names, or whose names hold a word that is no row's whole
name; --json adds them to those that are in the file. A file of other inputs is refused. Exits with 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.first_quality import GOLDEN, GROUP, divergence, held_out_rows
from benchmarks.int4_results import Results, inputs_of
from benchmarks.int4_rows import NAMES, Setting, makers
from benchmarks.text_kinds import text_kinds, write_calibration_file
from golden.corpus import read_corpus
from quantkit import registry
from quantkit.calibration.samples import CalibrationFile, CalibrationOptions
from quantkit.calibration.sources import calibration_samples
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Setting, str]:
    """Read the model and the texts; also which kind is calibrated on."""
    checkpoint = registry.open_checkpoint(options.model)
    kinds = text_kinds(read_corpus(), options.text)
    file = folder / f"{kinds.home}.jsonl"
    write_calibration_file(kinds.training, file)
    wanted = CalibrationOptions(sequences=options.sequences)
    alone = CalibrationOptions(
        files=(CalibrationFile(path=file),), own_text=False, sequences=wanted.sequences, length=wanted.length
    )
    setting = Setting(
        checkpoint=checkpoint,
        file=file,
        samples=calibration_samples(checkpoint, alone),
        rows={kind: held_out_rows(options.model, found, options.rows) for kind, found in kinds.measured.items()},
        options=wanted,
        group_size=options.group_size,
        threads=options.threads,
        gptqmodel=options.gptqmodel,
        folder=folder,
    )
    return setting, kinds.home


def measure(setting: Setting, original: MiniCPM, only: Sequence[str], bits: int, results: Results) -> None:
    """Make and measure the rows that are wanted, and keep each as soon as it is there."""
    for name, make in makers(setting, bits):
        if only and not is_wanted(name, only):
            continue
        start = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - start
        kl = {kind: divergence(original, made.model, rows) for kind, rows in setting.rows.items()}
        results.add(bits, name, {"kl": kl, "seconds": seconds, **made.notes})
        shown = "".join(f"  {kind} {value:.3e}" for kind, value in kl.items())
        print(f"{bits} bits  {name:30}{shown}  {seconds:7.1f} s", flush=True)


def is_wanted(name: str, only: Sequence[str]) -> bool:
    """Whether a row is one of `only`, or holds one of them that is no row's whole name."""
    return name in only or any(part in name for part in only if part not in NAMES)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN, help="a folder of any model that quantkit reads")
    parser.add_argument("--text", type=Path, help="UTF-8 text that the model was trained on, in place of our prose")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=GROUP)
    parser.add_argument("--sequences", type=int, default=CalibrationOptions().sequences, help="to calibrate on")
    parser.add_argument("--rows", type=int, default=24, help="held-out sequences of each kind of text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gptqmodel", type=Path, help="interpreter of an environment that has GPTQModel")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME", help="rows to run, by name or a part of one; default: all"
    )
    parser.add_argument("--json", type=Path, help="file that results are added to")
    return parser.parse_args()


def main() -> int:
    """Measure, print the tables; return 1 when a target is missed."""
    options = parsed()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        setting, home = prepared(options, Path(folder))
        coverage = setting.samples.coverage
        print(f"{coverage.sequences} calibration sequences from the file, {coverage.tokens} tokens")
        print("held out: " + ", ".join(f"{kind} {len(rows)}" for kind, rows in setting.rows.items()))
        inputs = inputs_of(setting.checkpoint, setting.samples.sequences, setting.rows, setting.group_size)
        results = Results(options.json, inputs)
        original = load_model(setting.checkpoint)
        for bits in options.bits:
            measure(setting, original, options.only, bits, results)
    for bits in sorted(results.figures, reverse=True):
        print("\n" + "\n".join(results.table(bits, NAMES)))
    verdicts = list(results.verdicts(home))
    print("\n" + "\n".join(verdict.text for verdict in verdicts))
    return int(any(verdict.missed for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())

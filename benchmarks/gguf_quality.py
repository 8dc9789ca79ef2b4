"""Quality at equal types beside llama.cpp: without text, with its importance matrix, and ours; all run in llama.cpp.

    python -m benchmarks.gguf_quality [--model DIR] [--text FILE] [--types q4_k_m q2_k ...] [--rows 16]
                                      [--sequences 128] [--only NAME ...] [--json FILE]

KL(original || file) per token, in nats, of the file in the real llama.cpp, on held-out text of three kinds: one that
the calibration file is of, and two that no row has seen (`benchmarks/text_kinds.py`). The rows of a type:

    reference             what llama-quantize makes without text (`--algorithm reference`, the same bytes)
    reference + imatrix   what it makes with the importance matrix of the calibration file
    searched              `quantkit export gguf` without calibration
    searched + imatrix    the same with that importance matrix
    calibrated            `--algorithm calibrated`: on text that the model writes itself
    calibrated + file     the same with `--calibration FILE`: half of the sequences are of the file
    calibrated, file alone

Every row sees the same number of sequences of text. llama.cpp chooses other types for some tensors where it has an
importance matrix, and so does `calibrated`; bytes stand beside each row. The table can be made in parts: --only runs
the rows of those names, --json adds them to those that are in the file. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import quantkit
from benchmarks.first_quality import GOLDEN, held_out_rows
from benchmarks.text_kinds import text_kinds, write_calibration_file
from golden.corpus import read_corpus
from quantkit import registry
from quantkit.models.loading import load_model
from quantkit.verification.metrics import kl_divergence

REFERENCE, WEIGHTED = "reference", "reference + imatrix"
SEARCHED, LED = "searched", "searched + imatrix"
CALIBRATED, WITH_FILE, FILE_ALONE = "calibrated", "calibrated + file", "calibrated, file alone"
NAMES = (REFERENCE, WEIGHTED, SEARCHED, LED, CALIBRATED, WITH_FILE, FILE_ALONE)
TYPES = ("q4_k_m", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs", "q4_0", "q6_k")
AT_HOME: Mapping[str, float] = {
    "q4_k_m": 0.31,
    "q3_k_m": 0.22,
    "q2_k": 0.17,
    "iq4_nl": 0.21,
    "q4_0": 0.21,
    "iq4_xs": 0.27,
    "q6_k": 0.60,
}
"""Most KL of the best row with the file over that of llama.cpp with its importance matrix, on the file's kind."""
ELSEWHERE: Mapping[str, float] = {"q4_k_m": 0.47, "q2_k": 0.38}
"""The same of `calibrated`, on kinds that were not seen."""
UNCALIBRATED: Mapping[str, float] = dict.fromkeys(TYPES, 1.0) | {"q4_k_m": 0.93}
"""Most KL of `searched` over that of llama.cpp without text, on every kind."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows share."""

    model: Path
    file: Path
    imatrix: Path
    folder: Path
    sequences: int
    threads: int


def made(setting: Setting, kind: str, name: str) -> Path:
    """The file of a row."""
    out = setting.folder / "row.gguf"
    algorithm = {REFERENCE: "reference", WEIGHTED: "reference", SEARCHED: "searched", LED: "searched"}.get(
        name, "calibrated"
    )
    blocks = quantkit.BlockOptions(algorithm=algorithm, imatrix=setting.imatrix if name in (WEIGHTED, LED) else None)
    options = quantkit.ExportOptions(type=kind, blocks=blocks, threads=setting.threads)
    if algorithm != "calibrated":
        quantkit.export("gguf", setting.model, out, options, overwrite=True)
        return out
    files = () if name == CALIBRATED else (quantkit.CalibrationFile(path=setting.file),)
    text = quantkit.CalibrationOptions(files=files, sequences=setting.sequences, own_text=name != FILE_ALONE)
    quantization = quantkit.QuantizeOptions(method="gptq", calibration=text)
    compute = quantkit.Compute(threads=setting.threads)
    quantkit.export_calibrated("gguf", setting.model, out, options, quantization, compute=compute, overwrite=True)
    return out


def measured(
    file: Path, rows: Mapping[str, Sequence[torch.Tensor]], wanted: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """KL of a file in llama.cpp by kind of text, and its bytes."""
    with registry.runtime("llama-cpp").open(file) as session:
        kl = {
            kind: float(np.mean([_kl(session, *pair) for pair in zip(found, wanted[kind], strict=True)]))
            for kind, found in rows.items()
        }
    return {"kl": kl, "size": file.stat().st_size}


def _kl(session: Any, row: torch.Tensor, logits: np.ndarray) -> float:
    return kl_divergence(logits, session.logits(row[0].tolist()))


def table(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown; the ratio is to llama.cpp with its importance matrix, or to the first row where there is none."""
    kinds = list(next(iter(next(iter(figures.values())).values()))["kl"])
    yield "| type | row | MB | " + " | ".join(f"KL, {kind} | x" for kind in kinds) + " |"
    yield "|---|---|---|" + "---|---|" * len(kinds)
    for kind, rows in figures.items():
        base = rows.get(WEIGHTED) or rows.get(REFERENCE) or next(iter(rows.values()))
        for name in (name for name in NAMES if name in rows):
            kl = rows[name]["kl"]
            cells = (f"{kl[k]:.3e} | {kl[k] / base['kl'][k]:.2f}" for k in kinds)
            yield f"| {kind} | {name} | {rows[name]['size'] / 1e6:.2f} | " + " | ".join(cells) + " |"


def verdicts(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[bool, str]]:
    """Whether each target that was measured is missed, and the line that says so."""
    for kind, rows in figures.items():
        home, *others = next(iter(rows.values()))["kl"]
        with_file = [name for name in (WITH_FILE, FILE_ALONE) if name in rows]
        if WEIGHTED in rows and with_file and kind in AT_HOME:
            best = min(with_file, key=lambda name: rows[name]["kl"][home])
            yield _verdict(rows, kind, best, WEIGHTED, home, AT_HOME[kind])
        for other in others:
            if WEIGHTED in rows and CALIBRATED in rows and kind in ELSEWHERE:
                yield _verdict(rows, kind, CALIBRATED, WEIGHTED, other, ELSEWHERE[kind])
        for text in (home, *others):
            if REFERENCE in rows and SEARCHED in rows and kind in UNCALIBRATED:
                yield _verdict(rows, kind, SEARCHED, REFERENCE, text, UNCALIBRATED[kind])


def _verdict(rows: Mapping[str, Any], kind: str, ours: str, theirs: str, text: str, most: float) -> tuple[bool, str]:
    ratio = rows[ours]["kl"][text] / rows[theirs]["kl"][text]
    missed = ratio > most
    return missed, f"{kind}, {text}: {ours} / {theirs} {ratio:.3f} (wanted {most}){' MISSED' if missed else ''}"


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GOLDEN, help="a folder of any model that quantkit reads")
    parser.add_argument("--text", type=Path, help="UTF-8 text that the model was trained on, in place of our prose")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rows", type=int, default=16, help="held-out sequences of each kind of text")
    parser.add_argument(
        "--sequences", type=int, default=quantkit.CalibrationOptions().sequences, help="to calibrate on"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="rows to run")
    parser.add_argument("--json", type=Path, help="file that results are added to")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table; return 1 when a target is missed."""
    options = parsed()
    torch.set_num_threads(options.threads)
    kinds = text_kinds(read_corpus(), options.text)
    rows = {kind: held_out_rows(options.model, found, options.rows) for kind, found in kinds.measured.items()}
    original = load_model(registry.open_checkpoint(options.model))
    with torch.no_grad():
        wanted = {kind: [original(row)[0].numpy() for row in found] for kind, found in rows.items()}
    figures: dict[str, dict[str, Any]] = {}
    if options.json is not None and options.json.exists():
        figures = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="quantkit-quality-") as name:
        folder = Path(name)
        setting = Setting(
            options.model, folder / "text.jsonl", folder / "imatrix.gguf", folder, options.sequences, options.threads
        )
        write_calibration_file(kinds.training, setting.file)
        if WEIGHTED in options.only:
            quantkit.measure_importance(options.model, setting.file, setting.imatrix, chunks=options.sequences)
        for kind in options.types:
            for row in options.only:
                start = time.perf_counter()
                found = measured(made(setting, kind, row), rows, wanted)
                figures.setdefault(kind, {})[row] = found
                print(f"{kind:8}{row:24}{found['kl']}  {time.perf_counter() - start:.1f} s", flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("\n" + "\n".join(table(figures)) + "\n")
    found_verdicts = list(verdicts(figures))
    print("\n".join(text for _, text in found_verdicts))
    return int(any(missed for missed, _ in found_verdicts))


if __name__ == "__main__":
    sys.exit(main())

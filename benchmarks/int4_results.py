"""The figures of `benchmarks/int4_quality.py`: kept in a file, shown as a table, held against the targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantkit.artifacts.publishing import source_digest
from quantkit.models.checkpoint import Checkpoint

STAGE = "ours: "
"""How the names of our stages begin."""
NAME_WIDTH = 30

MAX_TO_DEFAULT = 0.50
MAX_TO_BEST = 0.80
BEST_AT_BITS = 4
"""The best of GPTQModel's options has a target at this width only."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target: a line to print, and whether it was missed; what was not measured is not missed."""

    text: str
    missed: bool


def inputs_of(
    checkpoint: Checkpoint, sequences: Sequence[np.ndarray], rows: Sequence[torch.Tensor], group_size: int
) -> dict[str, Any]:
    """What figures depend on beside the row and the bits; figures with equal inputs may stand in one table."""

    def digest(tokens: Sequence[np.ndarray]) -> str:
        return hashlib.sha256(json.dumps([row.tolist() for row in tokens]).encode()).hexdigest()

    return {
        "model": [file["sha256"] for file in source_digest(checkpoint.inputs)],
        "calibration": {"sequences": len(sequences), "sha256": digest(sequences)},
        "held out": {"sequences": len(rows), "sha256": digest([row.numpy() for row in rows])},
        "group size": group_size,
    }


class Results:
    """Figures by bits and row; with a file, also those that it holds already."""

    def __init__(self, file: Path | None, inputs: Mapping[str, Any]) -> None:
        """Read the file where there is one.

        Raises:
            SystemExit: its figures were measured on other inputs.
        """
        self.file, self.inputs = file, inputs
        self.figures: dict[int, dict[str, dict[str, Any]]] = {}
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            if kept["inputs"] != inputs:
                raise SystemExit(f"{file} holds figures of another model, text, group size or number of sequences")
            self.figures = {int(bits): rows for bits, rows in kept["figures"].items()}

    def add(self, bits: int, name: str, figure: Mapping[str, Any]) -> None:
        """Keep a row, in place of an earlier one of that name."""
        self.figures.setdefault(bits, {})[name] = dict(figure)
        if self.file is not None:
            self.file.write_text(json.dumps({"inputs": self.inputs, "figures": self.figures}, indent=1) + "\n")

    def kl(self, bits: int, name: str) -> float | None:
        """The figure of a row, where it was measured."""
        row = self.figures.get(bits, {}).get(name)
        return None if row is None else float(row["kl"])

    def table(self, names: Sequence[str]) -> Iterator[str]:
        """A line per row, all bits side by side: KL, its ratio to round to nearest, of a stage to the row above."""
        widths = sorted(self.figures, reverse=True)
        yield " " * NAME_WIDTH + "".join(f"{f'KL, {bits} bits':>14}{'x rtn':>8}{'x above':>9}" for bits in widths)
        above: dict[int, float | None] = {}
        for name in names:
            found = {bits: self.kl(bits, name) for bits in widths}
            if any(kl is not None for kl in found.values()):
                before = above if name.startswith(STAGE) else {}
                cells = (_cells(kl, self.kl(bits, "rtn"), before.get(bits)) for bits, kl in found.items())
                yield (f"{name:{NAME_WIDTH}}" + "".join(cells)).rstrip()
            above = found

    def verdicts(self, ours: str, default: str, options: Sequence[str]) -> list[Verdict]:
        """The targets, at all bits that were measured."""
        found = []
        for bits in sorted(self.figures, reverse=True):
            mine, by_default = self.kl(bits, ours), self.kl(bits, default)
            label = f"{bits} bits, default / GPTQModel"
            found.append(_verdict(f"{label}, its default", mine, by_default, MAX_TO_DEFAULT))
            if bits == BEST_AT_BITS:
                tried = [(kl, name) for name in options if (kl := self.kl(bits, name)) is not None]
                best, name = min(tried, default=(None, "none"))
                found.append(_verdict(f"{label}, best of {len(tried)} options ({name})", mine, best, MAX_TO_BEST))
        return found


def _cells(kl: float | None, rtn: float | None, above: float | None) -> str:
    """Three columns; empty where there is nothing to compare with."""
    if kl is None:
        return " " * 31
    ratios = (f"{kl / other:.3f}" if other else "" for other in (rtn, above))
    return f"{kl:14.3e}" + "".join(f"{text:>{width}}" for text, width in zip(ratios, (8, 9), strict=True))


def _verdict(label: str, mine: float | None, other: float | None, most: float) -> Verdict:
    if mine is None or other is None:
        return Verdict(f"{label}: not measured", missed=False)
    missed = mine > most * other
    return Verdict(f"{'FAIL' if missed else 'pass'}  {mine / other:.3f} {label}, at most {most:g}", missed)

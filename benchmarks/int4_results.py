"""The figures of `benchmarks/int4_quality.py`: kept in a file, shown as tables, held against the targets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gptqmodel_runs
from benchmarks.int4_rows import DEFAULT, FILE_ALONE, RTN, TEXTBOOK, WITH_FILE
from quantkit.artifacts.publishing import source_digest
from quantkit.models.checkpoint import Checkpoint

NAME_WIDTH = 30

JUDGED_BITS = 4
"""Targets against round to nearest and GPTQModel hold at this width."""
DEFAULT_TO_RTN = 0.17
FILE_TO_RTN_AT_HOME, FILE_TO_RTN_ELSEWHERE = 0.12, 0.20
FILE_TO_TEXTBOOK_ELSEWHERE: Mapping[int, float] = {3: 0.25, 2: 0.35}
"""By bits."""
ALONE_TO_GPTQMODEL, ALONE_TO_ITS_BEST = 0.50, 0.80
"""On the kind of text that both are calibrated on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target: a line to print, and whether it was missed; what was not measured is not missed."""

    text: str
    missed: bool


def inputs_of(
    checkpoint: Checkpoint,
    sequences: Sequence[np.ndarray],
    rows: Mapping[str, Sequence[torch.Tensor]],
    group_size: int,
) -> dict[str, Any]:
    """What figures depend on beside the row and the bits; figures with equal inputs may stand in one table."""

    def digest(tokens: Sequence[np.ndarray]) -> dict[str, Any]:
        text = json.dumps([row.tolist() for row in tokens])
        return {"sequences": len(tokens), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    return {
        "model": [file["sha256"] for file in source_digest(checkpoint.inputs)],
        "calibration": digest(sequences),
        "held out": {kind: digest([row.numpy() for row in found]) for kind, found in rows.items()},
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

    @property
    def kinds(self) -> list[str]:
        """Kinds of text, in their order."""
        return list(self.inputs["held out"])

    def kl(self, bits: int, name: str, kind: str) -> float | None:
        """The figure of a row on a kind of text, where it was measured."""
        row = self.figures.get(bits, {}).get(name)
        return None if row is None else float(row["kl"][kind])

    def table(self, bits: int, names: Sequence[str]) -> Iterator[str]:
        """A line per row, all kinds of text side by side: KL and its ratio to round to nearest; then seconds."""
        heads = "".join(f"{kind:>12}{'x rtn':>8}" for kind in self.kinds)
        yield f"{f'KL, {bits} bits':{NAME_WIDTH}}{heads}{'seconds':>10}"
        for name in names:
            if name in self.figures[bits]:
                figure = self.figures[bits][name]
                cells = "".join(_cells(figure["kl"][kind], self.kl(bits, RTN, kind)) for kind in self.kinds)
                yield f"{name:{NAME_WIDTH}}{cells}{figure['seconds']:>10.1f}"

    def verdicts(self, home: str) -> Iterator[Verdict]:
        """The targets, at all bits that were measured; `home` is the kind of text that is calibrated on."""
        for bits in sorted(self.figures, reverse=True):
            for kind in self.kinds:
                if bits == JUDGED_BITS:
                    yield self._verdict(bits, kind, DEFAULT, RTN, DEFAULT_TO_RTN)
                    most = FILE_TO_RTN_AT_HOME if kind == home else FILE_TO_RTN_ELSEWHERE
                    yield self._verdict(bits, kind, WITH_FILE, RTN, most)
                elif bits in FILE_TO_TEXTBOOK_ELSEWHERE and kind != home:
                    yield self._verdict(bits, kind, WITH_FILE, TEXTBOOK, FILE_TO_TEXTBOOK_ELSEWHERE[bits])
            if bits == JUDGED_BITS:
                yield self._verdict(bits, home, FILE_ALONE, gptqmodel_runs.DEFAULT, ALONE_TO_GPTQMODEL)
                yield self._verdict(bits, home, FILE_ALONE, self._best_of_gptqmodel(bits, home), ALONE_TO_ITS_BEST)

    def _best_of_gptqmodel(self, bits: int, kind: str) -> str:
        """The row of GPTQModel that is best on a kind of text; its default where none was measured."""
        tried = [(kl, name) for name in gptqmodel_runs.OPTIONS if (kl := self.kl(bits, name, kind)) is not None]
        return min(tried, default=(0.0, gptqmodel_runs.DEFAULT))[1]

    def _verdict(self, bits: int, kind: str, name: str, other: str, most: float) -> Verdict:
        mine, against = self.kl(bits, name, kind), self.kl(bits, other, kind)
        label = f"{bits} bits, {kind}: {name} / {other}"
        if mine is None or against is None:
            return Verdict(f"----        {label}, not measured", missed=False)
        missed = mine > most * against
        return Verdict(f"{'FAIL' if missed else 'pass'}  {mine / against:.3f} {label}, at most {most:g}", missed)


def _cells(kl: float, rtn: float | None) -> str:
    """Two columns; the second is empty where there is nothing to compare with."""
    return f"{kl:12.3e}{f'{kl / rtn:.3f}' if rtn else '':>8}"

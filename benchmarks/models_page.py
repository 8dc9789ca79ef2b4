"""docs/models.md: its rows, and how they become text and come back from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantkit import registry
from quantkit.models.family.members import MEMBERS

ENGINES = ("llama-cpp", "transformers", "vllm")
"""The columns of engines; the reference's figure is the KL from the original."""

INTRODUCTION = """\
# Models

Written by `make models`: every dense member of the family in every container, from tiny models of each one's own
config (`tests/support/family.py`: scaled down in what costs time, with everything that is odd), rounded to nearest.

A row is an artifact. Bits are those of its weights in the file, KL (in nats) is that of the reference runtime on the
artifact from the original, and below an engine stands the largest difference of a log-probability between that engine
and the reference on the same artifact. Every figure is one that `quantkit verify` passes, unless a note says that it
does not. A number in brackets is a note at the end, which gives the reason where there is no figure; · = the engine
does not read this container. Random weights are harder to round than trained ones: figures compare containers and
engines, and say nothing of the quality of a real model.
"""
HEAD = "| container | type | arch | weights | bits | KL | " + " | ".join(ENGINES) + " |"
RULE = "|---|---|---|---|---:|---:|" + "---:|" * len(ENGINES)
NOTES = "## Notes"
COMMENT = "<!-- What each row was made from: python -m benchmarks.models --check"
ABSENT = "·"

Key = tuple[str, str, str, str, str]
"""Model, container, type, architecture and weights."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, a reason, both (a figure that does not pass), or neither: nothing to say."""

    figure: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An artifact: what it takes, what the reference and the engines make of it, and digests of what it was made from.

    stamp: written bytes and the values read back; empty where nothing is written.
    """

    key: Key
    bits: Cell
    kl: Cell
    engines: Mapping[str, Cell]
    stamp: str


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order; for each engine its version and a digest of the code that drives it."""

    rows: tuple[Row, ...]
    drivers: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The page in Markdown."""
        notes: dict[str, int] = {}
        lines = [INTRODUCTION, *members_table()]
        for model in dict.fromkeys(row.key[0] for row in self.rows):
            lines += ["", f"## {model}", "", HEAD, RULE]
            lines += [_line(row, notes) for row in self.rows if row.key[0] == model]
        lines += ["", NOTES, "", *(f"{number}. {note}" for note, number in notes.items()), "", COMMENT]
        lines += [f"{engine} = {driver}" for engine, driver in self.drivers.items()]
        lines += [f"{' | '.join(row.key)} = {row.stamp}" for row in self.rows if row.stamp]
        return "\n".join([*lines, "-->"]) + "\n"

    @classmethod
    def parsed(cls, text: str) -> Page:
        """Inverse of `text`."""
        body, _, comment = text.partition(COMMENT)
        body, _, listed = body.partition(NOTES)
        notes = {int(m[1]): m[2] for m in re.finditer(r"^(\d+)\. (.*)$", listed, re.MULTILINE)}
        entries = dict(line.rsplit(" = ", 1) for line in comment.splitlines() if " = " in line)
        rows = []
        for section in body.split("\n## ")[1:]:
            model, *lines = section.splitlines()
            for line in lines:
                if line.startswith("| ") and line != HEAD:
                    rows.append(_row(model, line, notes, entries))
        drivers = {engine: entries[engine] for engine in entries if " | " not in engine}
        return cls(tuple(rows), drivers)


def members_table() -> list[str]:
    """Every member with what tells it apart, and whether it is taken."""
    lines = ["| member | the same config | architecture | layers, hidden, heads, channels | vocabulary | taken |"]
    lines += ["|---|---|---|---|---:|---|"]
    for member in MEMBERS:
        shape = member.shape
        sizes = f"{shape.layers}, {shape.hidden}, {shape.heads}/{shape.kv_heads}, {shape.head_dim}"
        taken = f"no: {member.refused}" if member.refused else member.limited or "yes"
        cells = (member.name, ", ".join(member.also), member.architecture, sizes, f"{member.vocabulary:,}", taken)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def merged(older: Page, newer: Page, made: Sequence[str], order: Sequence[str]) -> Page:
    """`older` with the rows of a newer run in place of its own, models in this order.

    Cells of engines other than those in `made` stay where the artifact is what it was.
    """
    before = {row.key: row for row in older.rows}
    models = {row.key[0] for row in newer.rows}
    rows = [row for row in older.rows if row.key[0] not in models and row.key[0] in order]
    rows += [_completed(row, before.get(row.key), made) for row in newer.rows]
    rows.sort(key=lambda row: order.index(row.key[0]))
    drivers = {**older.drivers, **newer.drivers}
    return Page(tuple(rows), {engine: drivers[engine] for engine in ENGINES if engine in drivers})


def _completed(row: Row, old: Row | None, made: Sequence[str]) -> Row:
    """`row` with the cells of engines that did not run: as they were, or without a figure."""
    others = [engine for engine in ENGINES if engine not in made and row.stamp]
    kept = old is not None and old.stamp == row.stamp

    def cell(engine: str) -> Cell:
        if kept and old is not None:
            return old.engines.get(engine, Cell())
        reads = row.key[1] in registry.runtime(engine).formats
        return Cell(reason=f"{engine}: not run yet") if reads else Cell()

    cells = {engine: cell(engine) for engine in others}
    return Row(row.key, row.bits, row.kl, {**row.engines, **cells}, row.stamp)


def _line(row: Row, notes: dict[str, int]) -> str:
    cells = (row.bits, row.kl, *(row.engines.get(engine, Cell()) for engine in ENGINES))
    return f"| {' | '.join((*row.key[1:], *(_shown(cell, notes) for cell in cells)))} |"


def _shown(cell: Cell, notes: dict[str, int]) -> str:
    note = f"({notes.setdefault(cell.reason, len(notes) + 1)})" if cell.reason else ""
    return " ".join(filter(None, (cell.figure, note))) or ABSENT


def _row(model: str, line: str, notes: Mapping[int, str], entries: Mapping[str, str]) -> Row:
    container, kind, arch, weights, *cells = line.strip("| ").split(" | ")
    bits, kl, *engines = (_cell(cell, notes) for cell in cells)
    key = (model, container, kind, arch, weights)
    return Row(key, bits, kl, dict(zip(ENGINES, engines, strict=True)), entries.get(" | ".join(key), ""))


def _cell(text: str, notes: Mapping[int, str]) -> Cell:
    match = re.fullmatch(r"([^(]*?) ?(?:\((\d+)\))?", text)
    assert match is not None, text
    figure, number = match[1], match[2]
    return Cell("" if figure == ABSENT else figure, notes[int(number)] if number else "")

"""How verbs speak: results on stdout (text, or one JSON object), notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from quantkit.errors import escaped


class Output:
    """One command's voice. With `as_json` the result is a single JSON object and nothing else is on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = Console(soft_wrap=True, highlight=False)
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def result(self, data: Mapping[str, Any], *tables: Table, lines: Sequence[str] = ()) -> None:
        """Print `data` as JSON, or `lines` and `tables` as text."""
        if self.as_json:
            json.dump(data, sys.stdout, indent=1, ensure_ascii=False)
            sys.stdout.write("\n")
            return
        for line in lines:
            self.stdout.print(escaped(line), markup=False)
        for shown in tables:
            self.stdout.print(shown)

    def note(self, text: str) -> None:
        """A line that is not the result, on stderr."""
        self.stderr.print(escaped(text), markup=False, style="dim")

    @contextmanager
    def bytes_bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that counts bytes; yields the function to call with each increment."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.stderr, transient=True, disable=not self.stderr.is_terminal) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def steps_bar(self, label: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar that counts steps; yields a function of (what is being done, steps done, steps in all)."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, console=self.stderr, transient=True, disable=not self.stderr.is_terminal) as bar:
            task = bar.add_task(label, total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A plain table; columns named in `right` are right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column == columns[0])
    return made


def human_size(count: int) -> str:
    """Bytes with a decimal unit and three significant digits: 1234567 -> '1.23 MB'."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{count} B" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")

"""How verbs speak: results on stdout (text, or one JSON object), notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
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

    def notes(self, notes: Iterable[str]) -> None:
        """What the user should know of a model or an artifact, a line each."""
        for note in notes:
            self.note(f"note: {note}")

    @contextmanager
    def bars(self) -> Iterator[Bars]:
        """Progress bars on stderr while the block runs; silent where stderr is no terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.stderr, transient=True, disable=not self.stderr.is_terminal) as progress:
            yield Bars(progress)


class Bars:
    """Hands out functions that move a bar; a bar appears when it first moves."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def counter(self, label: str, total: int) -> Callable[[int], None]:
        """A bar that is told increments, such as bytes just written."""
        task = self._progress.add_task(label, total=total, visible=False)
        return lambda count: self._progress.update(task, advance=count, visible=True)

    def fraction(self, label: str) -> Callable[[int, int], None]:
        """A bar that is told (done, total)."""
        task = self._progress.add_task(label, total=None, visible=False)
        return lambda done, total: self._progress.update(task, completed=done, total=total, visible=done < total)

    def steps(self) -> Callable[[str, int, int], None]:
        """A bar that is told (what is being done, steps done, steps in all)."""
        task = self._progress.add_task("", total=None, visible=False)
        return lambda what, done, total: self._progress.update(
            task, description=what, completed=done, total=total, visible=True
        )


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

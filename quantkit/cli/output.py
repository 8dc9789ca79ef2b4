"""How verbs speak: results on stdout (text, or one JSON object), notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.errors import escaped
from quantkit.progress import Progress


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
    def progress(self, what: str) -> Iterator[Progress]:
        """Show on stderr how far the work in the block is: `what` at first, then what the progress is told."""
        from quantkit.cli.progress_display import shown

        with shown(self.stderr, what) as progress:
            yield progress


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

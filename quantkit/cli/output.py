"""How verbs speak: results on stdout (text, or one JSON object), notes and progress on stderr.

Progress is a bar that always moves on a terminal, and a plain line every 30 s elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table as Grid
from rich.text import Text

from quantkit.cli.tables import INDENT, Table, text_width, wrapped_words
from quantkit.errors import escaped, one_line
from quantkit.progress import Progress, unwatched

LINE_SECONDS = 30.0
"""Between two lines where stderr is no terminal; a run that is shorter writes none."""
NARROWEST_BAR, WIDEST_BAR = 8, 30
"""Columns of a progress bar; where fewer are left beside the words, there is none."""


class Output:
    """One command's voice. With `as_json` the result is a single JSON object and nothing else is on stdout.

    quiet: without notes and progress; warnings stay.
    """

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._warned: set[str] = set()
        self.stdout = Console(soft_wrap=True, highlight=False)
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def result(self, data: Mapping[str, Any], *parts: Table | str, lines: Sequence[str] = ()) -> None:
        """Print `data` as JSON, or as text `lines` and then `parts`, tables and lines."""
        if self.as_json:
            write_json(data)
            return
        shown = [part for part in (*lines, *parts) if isinstance(part, str) or part.rows]
        for before, part in zip([None, *shown], shown, strict=False):
            if isinstance(before, Table):
                self.stdout.print()
            if isinstance(part, str):
                say(self.stdout, escaped(part))
            else:
                self._table(part)

    def _table(self, table: Table) -> None:
        headings, rows = table.lines(self.stdout.width)
        for heading in headings:
            self.stdout.print(heading, markup=False, style="bold")
        for row in rows:
            self.stdout.print(row, markup=False)

    def stream(self, text: str) -> None:
        """Write a piece of the result as it stands; on a terminal, control characters are shown and not obeyed."""
        if not self.as_json:
            shown = "".join(c if c in "\n\t" else escaped(c) for c in text) if sys.stdout.isatty() else text
            sys.stdout.write(shown)
            sys.stdout.flush()

    def fail(self, text: str) -> None:
        """Why the command could not do what it was to do, on stderr."""
        say(self.stderr, text, label="error:", style="bold red")

    def warn(self, text: str) -> None:
        """A line on stderr that nobody is to overlook, once."""
        if text not in self._warned:
            self._warned.add(text)
            say(self.stderr, one_line(text), label="warning:", style="bold yellow")

    def note(self, text: str) -> None:
        """A line that is not the result, on stderr."""
        if not self.quiet:
            say(self.stderr, one_line(text), style="dim")

    def notes(self, notes: Iterable[str]) -> None:
        """What the user should know of a model or an artifact, a line each."""
        for note in notes:
            self.note(f"note: {note}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show on stderr how far the work in the block is: `what` at first, then what the progress is told."""
        if self.quiet:
            yield _Told(unwatched, self)
            return
        with shown(self.stderr, what) as estimate:
            yield _Told(estimate, self)


class _Told:
    """What long work speaks to: figures go to `progress`, words to the output."""

    def __init__(self, progress: Progress, output: Output) -> None:
        self._progress = progress
        self._output = output

    def __call__(self, what: str, done: float, total: float, /) -> None:
        self._progress(what, done, total)

    def say(self, text: str, /, *, loud: bool) -> None:
        if loud:
            self._output.warn(text)
        else:
            self._output.note(f"note: {text}")


def say(console: Console, line: str, *, label: str = "", style: str = "") -> None:
    """Print a line: broken between words on a terminal, else as one. With a `label` in front, `style` is that one's."""
    line = f"{label} {line}" if label else line
    text = line.lstrip(" ")
    indent = " " * (len(line) - len(text))
    parts = wrapped_words(text, console.width - len(indent) - len(INDENT)) if console.is_terminal else [text]
    for number, part in enumerate(parts):
        shown = Text(indent + (INDENT if number else "") + part, style="" if label else style)
        if label and number == 0:
            shown.stylize(style, 0, len(label))
        console.print(shown)


def write_json(data: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout; what a terminal would obey or hide is escaped."""
    sys.stdout.write(_UNPRINTABLE.sub(_json_escape, json.dumps(data, indent=1, ensure_ascii=False)) + "\n")


def called(path: Path) -> str:
    """The name of a file or folder, that of the folder meant by "." or ".." as well."""
    return path.name if path.name not in ("", "..") else path.absolute().resolve().name or str(path)


_UNPRINTABLE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What JSON need not escape and a terminal obeys or hides: C1 controls, directions of writing, marks without width."""


def _json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without rows; columns named in `right` are right-aligned."""
    return Table(columns, tuple(right))


def human_size(count: int) -> str:
    """Bytes with a decimal unit and three significant digits: 1234567 -> '1.23 MB'."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{count} B" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def human_time(seconds: float) -> str:
    """An estimate: "under 1 s", "8 s", "3 min", "2.5 h"."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Estimate:
    """What was told last, and how much time is left by it; follows `quantkit.progress.Progress`.

    what: what is being done. clock: seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self._clock = clock
        self._start = self._told = clock()
        self._share = 0.0

    def __call__(self, what: str, done: float, total: float, /) -> None:
        """Take note; of the same share told again, the first time counts."""
        share = min(done / total, 1.0) if total > 0 else 0.0
        if share != self._share:
            self._told, self._share = self._clock(), share
        self.what = what

    @property
    def share(self) -> float:
        """The part of the work that is done, 0 to 1."""
        return self._share

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def total(self) -> float | None:
        """Seconds that all of it takes if it goes on as fast as until the last step; None before the first."""
        return (self._told - self._start) / self._share if self._share > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to go, None while that cannot be told."""
        return None if self.total is None else max(self.total - self.elapsed, 0.0)

    def line(self) -> str:
        """All of it in one line: "block 3 of 24: o, 12 %, 1:05 elapsed, about 7:40 left"."""
        left = "" if self.left is None else f", about {clock_time(self.left)} left"
        return f"{self.what}, {self.share:.0%}, {clock_time(self.elapsed)} elapsed{left}"


def clock_time(seconds: float) -> str:
    """65 -> "1:05", 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown(console: Console, what: str) -> Iterator[Estimate]:
    """Show what the estimate that is yielded is told, while the block runs."""
    estimate = Estimate(what)
    if console.is_terminal:
        with Live(_Bar(estimate), console=console, refresh_per_second=8, transient=True):
            yield estimate
    else:
        with lines(estimate, console.out):
            yield estimate


@contextmanager
def lines(
    estimate: Estimate, write: Callable[[str], object], wait: Callable[[threading.Event, float], bool] | None = None
) -> Iterator[None]:
    """Write the estimate's line every 30 s from a thread of its own, whether or not anything is told meanwhile.

    wait(finished, seconds): returns whether the block has ended, by then or sooner; None = `Event.wait`.
    """
    finished = threading.Event()
    waiting = wait or threading.Event.wait

    def run() -> None:
        while not waiting(finished, LINE_SECONDS):
            write(estimate.line())

    thread = threading.Thread(target=run, name="quantkit-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


class _Bar:
    """One row that is made anew whenever it is drawn, in the width that there is."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        estimate = self._estimate
        left = "" if estimate.left is None else f"{clock_time(estimate.left)} left"
        figures = [f"{estimate.share:.0%}", clock_time(estimate.elapsed), *([left] if left else [])]
        spare = options.max_width - 2 - sum(len(figure) + 1 for figure in figures)
        bar = min(WIDEST_BAR, spare - text_width(estimate.what) - 1)
        what = Text(estimate.what, overflow="ellipsis", no_wrap=True)
        if bar < NARROWEST_BAR:
            what.truncate(max(spare, 1), overflow="ellipsis")
        row = Grid.grid(padding=(0, 1))
        shown = [ProgressBar(total=1.0, completed=estimate.share, width=bar)] if bar >= NARROWEST_BAR else []
        row.add_row(self._spinner, what, *shown, *figures)
        yield row

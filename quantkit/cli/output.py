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
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from quantkit.errors import escaped, one_line
from quantkit.progress import Progress

LINE_SECONDS = 30.0
"""Between two lines where stderr is no terminal; a run that is shorter writes none."""


class Output:
    """One command's voice. With `as_json` the result is a single JSON object and nothing else is on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.stdout = Console(soft_wrap=True, highlight=False)
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def result(self, data: Mapping[str, Any], *tables: Table, lines: Sequence[str] = ()) -> None:
        """Print `data` as JSON, or `lines` and `tables` as text."""
        if self.as_json:
            sys.stdout.write(_UNPRINTABLE.sub(_json_escape, json.dumps(data, indent=1, ensure_ascii=False)) + "\n")
            return
        for line in lines:
            self.stdout.print(escaped(line), markup=False)
        for shown in tables:
            self.stdout.print(shown)

    def stream(self, text: str) -> None:
        """Write a piece of the result as it stands; on a terminal, control characters are shown and not obeyed."""
        if not self.as_json:
            shown = "".join(c if c in "\n\t" else escaped(c) for c in text) if sys.stdout.isatty() else text
            sys.stdout.write(shown)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line that is not the result, on stderr."""
        self.stderr.print(one_line(text), markup=False, style="dim")

    def notes(self, notes: Iterable[str]) -> None:
        """What the user should know of a model or an artifact, a line each."""
        for note in notes:
            self.note(f"note: {note}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show on stderr how far the work in the block is: `what` at first, then what the progress is told."""
        with shown(self.stderr, what) as progress:
            yield progress


_UNPRINTABLE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What JSON need not escape and a terminal obeys or hides: C1 controls, directions of writing, marks without width."""


def _json_escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class PlainTable(Table):
    """A table whose cells are text as it stands: no markup, control characters shown."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add one cell per column."""
        super().add_row(*(Text(escaped(cell)) for cell in cells))


def table(*columns: str, right: Sequence[str] = ()) -> PlainTable:
    """A plain table; columns named in `right` are right-aligned."""
    made = PlainTable(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if column in right else "left", no_wrap=number == 0)
    return made


def human_size(count: int) -> str:
    """Bytes with a decimal unit and three significant digits: 1234567 -> '1.23 MB'."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{count} B" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


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
    """One row that is made anew whenever it is drawn."""

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self._spinner = Spinner("dots")

    def __rich__(self) -> Table:
        estimate = self._estimate
        left = "" if estimate.left is None else f"{clock_time(estimate.left)} left"
        bar = ProgressBar(total=1.0, completed=estimate.share, width=30)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            self._spinner, Text(estimate.what), bar, f"{estimate.share:.0%}", clock_time(estimate.elapsed), left
        )
        return row

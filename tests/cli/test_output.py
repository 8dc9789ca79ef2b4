"""Progress on stderr: what is written when, and how the time left is told; results on stdout, whatever is in them."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest
from rich.console import Console

from quantkit.cli.output import LINE_SECONDS, Estimate, Output, clock_time, lines, shown, table
from quantkit.errors import escaped


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_left_follows_from_the_share_that_is_done():
    clock = Clock()
    estimate = Estimate("reading model", clock)
    clock.now += 7
    assert (estimate.share, estimate.left) == (0, None)
    assert estimate.line() == "reading model, 0%, 0:07 elapsed"
    clock.now += 3
    estimate("block 1 of 4: q,k,v", 5, 40)
    assert (estimate.elapsed, estimate.total, estimate.left) == (10, 80, 70)
    clock.now += 20  # nothing is told, the time left goes down all the same
    assert estimate.left == 50
    estimate("block 1 of 4: o", 5, 40)
    assert estimate.total == 80
    assert estimate.line() == "block 1 of 4: o, 12%, 0:30 elapsed, about 0:50 left"
    clock.now += 100
    assert estimate.left == 0
    estimate("checking", 20, 20)
    assert estimate.share == 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3700, "1:01:40")])
def test_times_are_read_as_on_a_clock(seconds: float, text: str):
    assert clock_time(seconds) == text


def test_without_a_terminal_a_line_is_written_every_30_seconds():
    clock = Clock()
    estimate = Estimate("reading model", clock)
    written: list[tuple[float, str]] = []
    may_end, waited = threading.Event(), []

    def wait(finished: threading.Event, seconds: float) -> bool:
        if len(waited) == 4:  # 125 seconds: four lines
            may_end.set()
            return finished.wait(10)
        waited.append(seconds)
        clock.now += seconds
        if len(waited) == 2:
            estimate("block 1 of 2: o", 1, 10)
        return False

    with lines(estimate, lambda text: written.append((clock.now - 1000, text)), wait):
        assert may_end.wait(10)
    assert waited == [LINE_SECONDS] * 4 == [30.0] * 4
    assert [when for when, _ in written] == [30, 60, 90, 120]
    assert written[0][1] == "reading model, 0%, 0:30 elapsed"
    assert written[3][1] == "block 1 of 2: o, 10%, 2:00 elapsed, about 8:00 left"


def test_a_short_run_without_a_terminal_writes_nothing():
    stream = io.StringIO()
    with shown(Console(file=stream), "reading model") as progress:
        progress("writing", 1, 2)
    assert stream.getvalue() == ""


class Stamped(io.StringIO):
    """Notes when it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def write(self, text: str) -> int:
        self.times.append(time.monotonic())
        return super().write(text)


def test_on_a_terminal_something_moves_all_the_time_although_nothing_is_told():
    stream = Stamped()
    console = Console(file=stream, force_terminal=True, width=100)
    with shown(console, "block 3 of 24: q,k,v"):
        time.sleep(1.5)
    stream.times.append(time.monotonic())
    gaps = [later - earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)]
    assert max(gaps) < 1.0
    frames = stream.getvalue()
    assert "block 3 of 24: q,k,v" in frames
    assert "0:01" in frames  # the time elapsed


def test_an_error_ends_the_display():
    with pytest.raises(KeyboardInterrupt), shown(Console(file=io.StringIO()), "reading") as progress:
        progress("writing", 1, 2)
        raise KeyboardInterrupt
    assert "quantkit-progress" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    "text", ["[bold red]x[/]", "[/nothing]", "\x1b[31m", "\x9b2J", "a\nb", "\u202ex", "[link=file:x]"]
)
def test_cells_and_lines_show_text_as_it_stands(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table("name", "value", right=("value",))
    rows.add_row(text, text)
    Output(as_json=False).result({}, rows, lines=[text])
    shown = capsys.readouterr().out
    assert shown.count(escaped(text)) == 3
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(
    "text", ["\x9b31m", "\x7f", "\u202e", "\u2066", "\ud800", "\u65e5\u672c", "\x1b[2J", "\u200b\ufeff"]
)
def test_json_escapes_what_a_terminal_obeys_and_says_the_same(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).result({text: [text]})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {text: [text]}
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_cannot_drive_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.StringIO()
    monkeypatch.setattr(stdout, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", stdout)
    Output(as_json=False).stream("a\tb\n\x1b[2J\u65e5")
    assert stdout.getvalue() == ("a\tb\n\\x1b[2J\u65e5" if terminal else "a\tb\n\x1b[2J\u65e5")

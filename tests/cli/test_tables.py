"""Tables fit the width that there is, and no word is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len

from quantkit.cli.app import main
from quantkit.cli.output import Output, table
from quantkit.cli.tables import Table, shared, wrapped_words

FIRST_HEADINGS = {"format", "engine", "tensor"}
"""A list does without them."""
LONG = "model.layers.0.self_attn.q_proj.weight"


def made() -> Table:
    rows = table("tensor", "what it is", "size", right=("size",))
    rows.add_row(LONG, "a matrix of many words, which may be broken between any two of them", "12.5 MB")
    rows.add_row("norm", "短い 言葉", "3 B")
    return rows


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20, 1])
def test_every_word_is_there_whole_and_every_line_fits_or_is_one_word(width: int) -> None:
    rows = made()
    headings, lines = rows.lines(width)
    words = " ".join(lines).split()
    for cells in rows.rows:
        for word in " ".join(cells).split():
            assert word in words
    for line in (*headings, *lines):
        assert cell_len(line) <= width or len(line.replace("size: ", "").split()) == 1, line
        assert line == line.rstrip()


def test_columns_stand_below_their_headings() -> None:
    headings, lines = made().lines(120)
    (heading,) = headings
    assert lines[0].index("a matrix") == heading.index("what it is")
    assert len(lines[0]) == len(heading) == len(lines[1]) + 4  # Chinese characters take two columns


def test_what_has_no_room_for_columns_becomes_a_list() -> None:
    headings, lines = made().lines(44)
    assert headings == []
    assert lines[0] == LONG
    assert lines[1].startswith("  what it is: a matrix")
    assert "  size: 12.5 MB" in lines


def test_the_widest_columns_give_way_first() -> None:
    assert shared([10, 50, 30], [4, 8, 12], 90) == [10, 50, 30]
    assert shared([10, 50, 30], [4, 8, 12], 60) == [10, 25, 25]
    assert shared([10, 50, 30], [4, 8, 12], 24) == [4, 8, 12]
    assert shared([10, 50, 30], [4, 8, 12], 23) is None


def test_words_stay_whole() -> None:
    assert wrapped_words("one two three", 8) == ["one two", "three"]
    assert wrapped_words(f"see {LONG} there", 10) == ["see", LONG, "there"]


@pytest.mark.parametrize("command", ["formats", "inspect MODEL --tensors", "plan MODEL --method rtn --to all"])
def test_verbs_cut_no_word_at_any_width(
    command: str, golden_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {}
    for width in (60, 80, 120, 250):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main([str(golden_model) if word == "MODEL" else word for word in command.split()]) == 0
        words[width] = set(capsys.readouterr().out.replace(":", " ").split())
    for width in (60, 80, 120):
        assert words[250] - FIRST_HEADINGS <= words[width]


def test_lines_are_broken_between_words_on_a_terminal_and_whole_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{LONG} is refused because of something that takes many words to tell"
    monkeypatch.setenv("COLUMNS", "60")
    Output(as_json=False).fail(text)
    assert capsys.readouterr().err == f"error: {text}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    Output(as_json=False).fail(text)
    shown = capsys.readouterr().err
    assert "\x1b[" in shown
    assert shown.count("\n") == 2
    monkeypatch.setenv("NO_COLOR", "1")
    Output(as_json=False).fail(text)
    assert "\x1b[1;31m" not in capsys.readouterr().err

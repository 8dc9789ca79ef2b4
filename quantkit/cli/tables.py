"""Tables and lines of text that fit a width without cutting a word.

A table whose words fit side by side has columns, which give way where they have room to. Any other becomes a list: of
every row the first cell, and below it the others with their headings. A word that is wider than all of it stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from quantkit.errors import escaped

GAP = 2
"""Spaces between two columns."""
INDENT = "  "
"""In front of what belongs to the line above."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headings. right: the columns that are right-aligned, by their headings.

    Control characters are shown and not obeyed.
    """

    columns: tuple[str, ...]
    right: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add one cell per column."""
        self.rows.append(tuple(map(escaped, cells)))

    def lines(self, width: int) -> tuple[list[str], list[str]]:
        """The headings and the rows in `width` columns of a terminal; no headings where it has none, or as a list."""
        cells = list(zip(self.columns, *self.rows, strict=True))
        wanted = [max(map(text_width, column)) for column in cells]
        least = [max(map(_widest_word, column)) for column in cells]
        widths = shared(wanted, least, width - GAP * (len(self.columns) - 1))
        if widths is None:
            return [], list(self._listed(width))
        headings = list(self._row(self.columns, widths)) if any(self.columns) else []
        return headings, [line for row in self.rows for line in self._row(row, widths)]

    def _row(self, row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        wrapped = [wrapped_words(cell, width) for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            parts = [
                _padded(lines[number] if number < len(lines) else "", width, right=heading in self.right)
                for lines, width, heading in zip(wrapped, widths, self.columns, strict=True)
            ]
            yield (" " * GAP).join(parts).rstrip()

    def _listed(self, width: int) -> Iterator[str]:
        for row in self.rows:
            yield from wrapped_words(row[0], width)
            for heading, cell in zip(self.columns[1:], row[1:], strict=True):
                if cell:
                    text = f"{heading}: {cell}" if heading else cell
                    yield from (INDENT + line for line in wrapped_words(text, width - len(INDENT)))


def shared(wanted: Sequence[int], least: Sequence[int], width: int) -> list[int] | None:
    """Widths of columns that want `wanted`, need `least`, and have `width` together; None where that is too little.

    The widest columns give way first.
    """
    if sum(least) > width:
        return None
    most = max(wanted, default=0)
    while sum(max(need, min(want, most)) for want, need in zip(wanted, least, strict=True)) > width:
        most -= 1
    return [max(need, min(want, most)) for want, need in zip(wanted, least, strict=True)]


def wrapped_words(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words; a wider word has a line of its own."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1].strip() and text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def text_width(text: str) -> int:
    """Columns of a terminal that `text` takes; most Chinese characters take two."""
    from rich.cells import cell_len

    return cell_len(text)


def _widest_word(text: str) -> int:
    return max(map(text_width, text.split(" ")))


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space

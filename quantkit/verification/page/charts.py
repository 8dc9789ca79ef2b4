"""The pictures, as SVG inside the page: as wide as a phone, and text that is text.

Series are told apart by their number, which stands in every mark, and by color; every mark has its figure as a title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from quantkit.verification.page.facts import LayerErrors, ReportedArtifact
from quantkit.verification.page.scales import Scale, figure, from_zero, logarithmic
from quantkit.verification.report import Comparison

WIDTH = 330
LEFT, RIGHT = 24, 68
"""Of a row's line: room for its number, and for its figure."""
LINE, TITLE = 17, 20
"""Heights of one artifact's line in a row, and of the row's title."""
COLORS = 8
"""Beyond so many series all are gray."""
STEPS = 11
"""Shades of a heat map."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One figure of one artifact in a row; limit: what it must not pass, drawn as a bar across the line."""

    number: int
    value: float
    limit: float | None = None


def color(number: int) -> str:
    """The class of a series; one that is alone has the number 0."""
    return f"c{number or 1}" if number <= COLORS else "c0"


def rows(
    titles: Mapping[str, Sequence[Mark]],
    scale: Callable[[Sequence[float], float, float], Scale],
    text: Callable[[float | None], str],
    *,
    label: str,
) -> str:
    """A row for each title with a line for each of its marks, along one scale."""
    values = [x for marks in titles.values() for mark in marks for x in (mark.value, mark.limit) if x is not None]
    along = scale(values, LEFT, WIDTH - RIGHT)
    parts, top = [], 20.0
    for title, marks in titles.items():
        parts.append(f'<text x="0" y="{top + 12:g}" class="strong">{escape(title)}</text>')
        for line, mark in enumerate(marks):
            parts += _line(mark, along, top + TITLE + line * LINE + 3, text, title)
        top += TITLE + len(marks) * LINE + 4
    return _svg(top + 2, [*_down(along, 16, top), *parts], label)


def _line(mark: Mark, along: Scale, y: float, text: Callable[[float | None], str], title: str) -> Iterator[str]:
    shown = text(mark.value)
    named = f"{mark.number}, " if mark.number else ""
    limit = f", limit {text(mark.limit)}" if mark.limit is not None else ""
    yield f'<g class="{color(mark.number)}"><title>{escape(f"{named}{title}: {shown}{limit}")}</title>'
    if mark.limit is not None and math.isfinite(mark.limit):
        x = along(mark.limit)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6:g}" y2="{y + 6:g}" class="limit"/>'
    if math.isfinite(mark.value):
        x = along(mark.value)
        yield f'<line x1="{along.base:.1f}" x2="{x:.1f}" y1="{y:g}" y2="{y:g}" class="stem"/>'
        yield _numbered(mark.number, x, y)
    yield f'<text x="{WIDTH}" y="{y + 4:g}" text-anchor="end">{escape(shown)}</text></g>'


def _numbered(number: int, x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7.5"/>'
        f'<text x="{x:.1f}" y="{y + 3.6:.1f}" text-anchor="middle" class="on">{number or ""}</text>'
    )


def prompts(subjects: Sequence[ReportedArtifact], of: Callable[[Comparison], Mark]) -> dict[str, list[Mark]]:
    """The marks of every prompt, in the order of the first artifact that has it."""
    found: dict[str, list[Mark]] = {}
    for one in subjects:
        for comparison in one.original.comparisons if one.original is not None else ():
            mark = of(comparison)
            found.setdefault(comparison.prompt, []).append(Mark(one.number, mark.value, mark.limit))
    return found


def size_against_kl(subjects: Sequence[ReportedArtifact]) -> str | None:
    """Megabytes across, KL upwards; None where fewer than two artifacts have both."""
    points = [
        (one, one.size / 1e6, one.original.kl)
        for one in subjects
        if one.size and one.original is not None and math.isfinite(one.original.kl)
    ]
    if len(points) < 2:
        return None
    height, floor = 250, 212
    across = from_zero([size for _, size, _ in points], 46, WIDTH - 12)
    up = logarithmic([kl for _, _, kl in points], floor, 20)
    parts = [*_down(across, 20, floor, below=True)]
    for value, name in up.ticks:
        y = up(value)
        parts.append(f'<line x1="46" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="42" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for one, size, kl in points:
        shown = escape(f"{one.number}, {one.name}: {size:.3g} MB, KL {figure(kl)}")
        parts.append(
            f'<g class="{color(one.number)}"><title>{shown}</title>{_numbered(one.number, across(size), up(kl))}</g>'
        )
    parts.append(f'<text x="{WIDTH - 12}" y="{height - 4}" text-anchor="end">megabytes</text>')
    parts.append('<text x="0" y="10">KL in nats</text>')
    return _svg(height, parts, "size against KL")


def heat(errors: LayerErrors) -> str:
    """Kinds of matrices down, layers across; the darker (on a dark page the lighter), the larger the error."""
    layers = 1 + max((layer for kind in errors.kinds.values() for layer in kind), default=0)
    kinds = {kind: found for kind, found in errors.kinds.items() if set(found) != {-1}}
    edges = bounds(errors)
    left, row = 76, 20
    cell = min(56.0, (WIDTH - left) / max(layers, 1))
    parts = []
    for number, (kind, found) in enumerate(kinds.items()):
        top = number * row
        parts.append(f'<text x="{left - 6}" y="{top + 14}" text-anchor="end">{escape(kind)}</text>')
        for layer, error in sorted(found.items()):
            place = f'x="{left + layer * cell:.2f}" y="{top}" width="{max(cell - 1, 1):.2f}" height="{row - 2}"'
            told = escape(f"layer {layer}, {kind}: {figure(error)}")
            parts.append(f'<rect {place} class="s{_shade(error, edges)}"><title>{told}</title></rect>')
    bottom = len(kinds) * row
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * cell >= 18 or step == 100)
    for layer in range(0, layers, every):
        x = left + (layer + 0.5) * cell
        parts.append(f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{layer}</text>')
    parts.append(f'<text x="{left - 6}" y="{bottom + 13}" text-anchor="end">layer</text>')
    return _svg(bottom + 18, parts, f"error of each layer's {errors.of}")


def bounds(errors: LayerErrors) -> list[float]:
    """The least error of every shade, and the largest error, of all layers; in equal ratios."""
    kinds = errors.kinds.values()
    found = [error for kind in kinds for layer, error in kind.items() if layer >= 0 and error > 0] or [1.0]
    least, most = min(found), max(found)
    ratio = (most / least) ** (1 / STEPS)
    return [least * ratio**step for step in range(STEPS)] + [most]


def _shade(error: float, edges: Sequence[float]) -> int:
    return sum(error > edge for edge in edges[1:-1])


def _down(along: Scale, top: float, bottom: float, *, below: bool = False) -> Iterator[str]:
    """A line for each tick from `top` to `bottom`, its name at one end."""
    for value, name in along.ticks:
        x = along(value)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}" class="grid"/>'
        y = bottom + 14 if below else top - 4
        yield f'<text x="{x:.1f}" y="{y:g}" text-anchor="middle">{name}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{inside}</svg>'

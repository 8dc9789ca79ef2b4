"""The page: a card for each artifact, the pictures with their figures as tables, and all of it as JSON.

Nothing is loaded, and a policy in the page's head says so to the browser. There is no script either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape

from quantkit import __version__
from quantkit.verification.page.charts import Mark, bounds, color, heat, prompts, rows, size_against_kl
from quantkit.verification.page.facts import LayerErrors, ReportedArtifact
from quantkit.verification.page.scales import figure, logarithmic, percent, shares
from quantkit.verification.page.style import style
from quantkit.verification.report import FAILED, PASSED

GENERATOR = "quantkit report"
"""What the head of the page says it was made by; by this one is known from any other HTML file."""
DATA = "quantkit-report"
"""The id of the element that holds the reports as `verify --json` gives them, in a list."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MARKS = {PASSED: "✓", FAILED: "✗"}


def document(subjects: Sequence[ReportedArtifact], compared_with: str | None) -> str:
    """The whole page. compared_with: a name for what the artifacts were held to."""
    title = ", ".join(one.name for one in subjects)
    against = f"Held to what {escape(compared_with)} predicts" if compared_with else "Held to no original"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="generator" content="{GENERATOR} {__version__}">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}: report</title>",
            f"<style>{style()}</style></head><body><main>",
            f"<h1>{_count(len(subjects))}</h1>",
            f'<p class="soft">{against}, by quantkit {__version__}.</p>',
            '<div class="cards">',
            *map(_card, subjects),
            "</div>",
            '<div class="figures">',
            *_figures(subjects),
            "</div></main>",
            f'<script type="application/json" id="{DATA}">{_data(subjects)}</script>',
            "</body></html>",
            "",
        ]
    )


def _count(number: int) -> str:
    return "One artifact, verified" if number == 1 else f"{number} artifacts, verified side by side"


def _data(subjects: Sequence[ReportedArtifact]) -> str:
    reports = [one.report.to_json() for one in subjects]
    return json.dumps(reports, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")


def _chip(number: int) -> str:
    return f'<span class="chip {color(number)}">{number}</span>' if number else ""


def _card(one: ReportedArtifact) -> str:
    report, check = one.report, one.original
    facts = {
        "format": f"{report.format}, {report.precision}",
        "size": f"{one.size / 1e6:.3g} MB" if one.size is not None else None,
        "bits per weight": f"{one.bits:.2f}" if one.bits is not None else None,
        "engine": report.engine or "none, numpy reference",
        "KL": f"{figure(check.kl)} nats" if check is not None else None,
        "top-1 equal": percent(check.top1) if check is not None else None,
    }
    steps = "".join(
        f"<dt>{MARKS.get(step.status, '–')} {step.name}</dt><dd>{escape(step.says)}{_problems(step.problems)}</dd>"
        for step in report.steps
    )
    shown = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value is not None)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    diverged = f"<p>{escape(report.divergence.line())}</p>" if report.divergence is not None else ""
    return (
        f'<section class="card"><p class="name">{_chip(one.number)}{escape(one.name)}</p>'
        f'<p class="verdict {"good" if report.passed else "bad"}">{MARKS[PASSED if report.passed else FAILED]} '
        f"{escape(report.verdict)}</p><dl>{shown}</dl>{diverged}"
        f"<details{'' if report.passed else ' open'}><summary>What was checked</summary><dl>{steps}</dl>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</details></section>"
    )


def _problems(problems: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(problem)}</li>' for problem in problems)}</ul>" if problems else ""


def _figures(subjects: Sequence[ReportedArtifact]) -> Iterator[str]:
    scatter = size_against_kl(subjects)
    if scatter is not None:
        yield _figure("Size against KL", "Lower and further left is better.", scatter + _legend(subjects))
    kls = prompts(subjects, lambda found: Mark(0, found.kl, found.limit))
    if kls:
        told = "In nats, mean over the prompt's positions. The bar is the limit that verify holds it to."
        table = _table(("prompt", "artifact", "KL", "limit"), _rows_of(kls, subjects, figure))
        yield _figure("KL of each prompt", told, rows(kls, logarithmic, figure, label="KL of each prompt") + table)
        tops = prompts(subjects, lambda found: Mark(0, found.top1))
        told = "Share of positions whose most likely token is the original's."
        table = _table(("prompt", "artifact", "top-1 equal"), _rows_of(tops, subjects, percent))
        label = "top-1 of each prompt"
        yield _figure("Top-1 of each prompt", told, rows(tops, shares, percent, label=label) + table)
    for one in subjects:
        if one.errors is not None:
            heading = "Error of each layer" + (f": {one.name}" if len(subjects) > 1 else "")
            scale = " Every artifact has a scale of its own." if len(subjects) > 1 else ""
            yield _figure(heading, f"Squared and relative, of its {one.errors.of}.{scale}", _heat(one.errors))


def _figure(heading: str, caption: str, inside: str) -> str:
    return f"<figure><h2>{escape(heading)}</h2><figcaption>{escape(caption)}</figcaption>{inside}</figure>"


def _legend(subjects: Sequence[ReportedArtifact]) -> str:
    names = "".join(f"<span>{_chip(one.number)}{escape(one.name)}</span>" for one in subjects)
    return f'<div class="legend">{names}</div>'


def _rows_of(
    found: Mapping[str, Sequence[Mark]], subjects: Sequence[ReportedArtifact], text: Callable[[float | None], str]
) -> Iterator[tuple[str, ...]]:
    names = {one.number: one.name for one in subjects}
    for prompt, marks in found.items():
        for mark in marks:
            limit = (text(mark.limit),) if mark.limit is not None else ()
            yield (prompt, f"{mark.number or ''} {names[mark.number]}".strip(), text(mark.value), *limit)


def _heat(errors: LayerErrors) -> str:
    edges = bounds(errors)
    swatches = "".join(f'<i class="s{number}"></i>' for number in range(len(edges) - 1))
    ends = [f"<span>{figure(edge)}</span>" for edge in (edges[0], edges[-1])]
    legend = f'<div class="legend shades">{ends[0]}{swatches}{ends[1]}</div>'
    outer = [(kind, "", figure(found[-1])) for kind, found in errors.kinds.items() if -1 in found]
    inner = [
        (kind, str(layer), figure(error))
        for kind, found in errors.kinds.items()
        for layer, error in sorted(found.items())
        if layer >= 0
    ]
    return heat(errors) + legend + _table(("matrix", "layer", "error"), [*outer, *inner])


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    table = f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    return f"<details><summary>As a table</summary>{table}</details>"

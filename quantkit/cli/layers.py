"""What is said of a run's layers and calibration: a few lines, and all of it where it was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from quantkit.cli.tables import Table

WORST = 5
"""Layers that are named where not all are asked for."""


def error_line(errors: Mapping[str, float], *, every: bool) -> str:
    """How large the errors of the layers are."""
    named = "" if every or len(errors) <= WORST else f"; the worst {WORST} are below, --tensors lists all"
    largest = max(errors.values())
    return f"error of {len(errors)} layers: median {median(errors.values()):.2e}, largest {largest:.2e}{named}"


def error_table(errors: Mapping[str, float], fallbacks: Mapping[str, str], *, every: bool) -> Table:
    """The worst layers, worst first, or every one as it comes; with what became of those that were given up."""
    names = list(errors) if every else sorted(errors, key=lambda name: -errors[name])[:WORST]
    shown = Table(("layer", "error", *(("",) if fallbacks else ())), right=("error",))
    for name in names:
        shown.add_row(name, f"{errors[name]:.2e}", *((fallbacks.get(name, ""),) if fallbacks else ()))
    return shown


def summary(errors: Mapping[str, float]) -> dict[str, Any]:
    """The same for JSON."""
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    return {"median": median(errors.values()) if errors else None, "worst": {name: errors[name] for name in worst}}


def calibration_lines(calibration: Mapping[str, Any] | None) -> Iterator[str]:
    """What was calibrated on, and how much error is left on each source, with it and without it."""
    if calibration is None:
        return
    if calibration["own_text"] is not None:
        yield calibration["own_text"]
    for source in calibration["sources"]:
        lost = "" if source["kl"] is None else f", KL {source['kl']:.1e}"
        yield f"{source['name']}: {source['sequences']:,} sequences, {source['tokens']:,} tokens{lost}"
    for name, errors in calibration["left_out"].items():
        with_it, without = errors["error_with"], errors["error_without"]
        yield f"error of layers on {name}: {with_it:.2e}; {without:.2e} for codes chosen without it"

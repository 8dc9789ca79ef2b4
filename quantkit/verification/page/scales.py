"""From figures to places on a picture, and to text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` along pixels from `start` to `stop`; values beyond lie at the ends.

    ticks: the values that are named, with their names. base: the pixel that lines to a value begin at.
    """

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool
    ticks: tuple[tuple[float, str], ...]
    base: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.stop - self.start) * (at - low) / (high - low)


def logarithmic(values: Sequence[float], start: float, stop: float) -> Scale:
    """Whole powers of ten around the positive ones of `values`."""
    found = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    first, last = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    last = max(last, first + 1)
    step = math.ceil((last - first + 1) / MOST_TICKS)
    ticks = tuple((10.0**power, f"1e{power:+03d}") for power in range(first, last + 1, step))
    return Scale(10.0**first, 10.0**last, start, stop, True, ticks, start)


def shares(values: Sequence[float], start: float, stop: float) -> Scale:
    """From 1 down to a round share below the least of `values`, in percent; a line is as long as what is lost."""
    least = min((value for value in values if math.isfinite(value)), default=1.0)
    room = next(room for room in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if 1 - room <= least or room == 1.0)
    ticks = tuple((1 - room * part, f"{100 * (1 - room * part):.3g} %") for part in (1.0, 0.5, 0.0))
    return Scale(1 - room, 1.0, start, stop, False, ticks, stop)


def from_zero(values: Sequence[float], start: float, stop: float) -> Scale:
    """From zero to a round number above the largest of `values`; they are not all zero."""
    most = max(values)
    unit = 10.0 ** math.floor(math.log10(most))
    step = next(step for step in (unit / 5, unit / 2, unit, 2 * unit) if most / step <= MOST_TICKS - 1)
    count = math.ceil(most / step)
    ticks = tuple((step * number, f"{step * number:.6g}") for number in range(count + 1))
    return Scale(0.0, step * count, start, stop, False, ticks, start)


def figure(value: float | None) -> str:
    """As `verify` prints it, "1.23e-03"; "undefined" for what is no number."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.2e}"


def percent(value: float | None) -> str:
    """As `verify` prints it, "97.05%"."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.2%}"

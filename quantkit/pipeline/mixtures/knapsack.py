"""The choice of least loss among those that a number of bytes holds: a knapsack with one item of every group.

Solved exactly by dynamic programming over bytes, in units of what the sizes have in common. Where that is too fine, in
coarser units: sizes are then rounded up, so that the choice fits, and what is left over is spent step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_CELLS = 1 << 18
"""Numbers of units that are looked at, at most."""


@dataclass(frozen=True, slots=True)
class Item:
    """One choice of a group: its bytes, and what it loses."""

    nbytes: int
    loss: float


def best_choice(groups: Sequence[Sequence[Item]], budget: int) -> list[int] | None:
    """The number of the chosen item of every group, all together of at most `budget` bytes; None where none fits.

    Among equals the one that comes first. A loss that is NaN or infinite is worse than any other.
    """
    least = [min(item.nbytes for item in group) for group in groups]
    spare = budget - sum(least)
    if spare < 0:
        return None
    more = [[item.nbytes - low for item in group] for group, low in zip(groups, least, strict=True)]
    losses = [[item.loss if math.isfinite(item.loss) else 1e30 for item in group] for group in groups]
    spare = min(spare, sum(map(max, more)))
    unit = max(1, math.gcd(*(extra for group in more for extra in group)))
    exact = spare // unit < MOST_CELLS
    if not exact:
        unit *= -(-spare // (unit * (MOST_CELLS - 1)))
    chosen = _by_units([[-(-extra // unit) for extra in group] for group in more], losses, spare // unit)
    return chosen if exact else _spent(chosen, more, losses, spare)


def _by_units(more: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], spare: int) -> list[int]:
    """The choice of least loss that takes at most `spare` units."""
    best = np.zeros(spare + 1)
    taken = np.empty((len(more), spare + 1), np.uint8)
    for group, (extras, lost) in enumerate(zip(more, losses, strict=True)):
        found = np.full(spare + 1, np.inf)
        for number, (extra, loss) in enumerate(zip(extras, lost, strict=True)):
            if extra > spare:
                continue
            candidate = best[: spare + 1 - extra] + loss
            better = candidate < found[extra:]
            found[extra:][better] = candidate[better]
            taken[group, extra:][better] = number
        best = found
    chosen, left = [0] * len(more), spare
    for group in reversed(range(len(more))):
        chosen[group] = int(taken[group, left])
        left -= more[group][chosen[group]]
    return chosen


def _spent(
    chosen: list[int], more: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], spare: int
) -> list[int]:
    """`chosen`, with what is left over spent on the step that saves most, until none fits."""
    left = spare - sum(extras[number] for extras, number in zip(more, chosen, strict=True))
    while True:
        steps = [
            (losses[group][number] - losses[group][now], group, number)
            for group, now in enumerate(chosen)
            for number, extra in enumerate(more[group])
            if extra - more[group][now] <= left and losses[group][number] < losses[group][now]
        ]
        if not steps:
            return chosen
        _, group, number = min(steps)
        left -= more[group][number] - more[group][chosen[group]]
        chosen[group] = number

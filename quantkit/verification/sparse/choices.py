"""Which blocks were chosen, by which scores; and whether two models choose alike, where scores decide it.

Scores are compared by their logarithms: a score is a sum of exp(q k - log Z), so what rounding does to q and k moves
its logarithm, and all scores of a token together by what it does to Z. A model whose logarithms lie within `bound` / 2
of another's keeps every chosen block whose score is above the best that was left out by more than `bound`, and takes
none whose score is below the last that was chosen by more. What lies nearer may change places: a near-tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """At P positions of a prompt, of every layer and group of heads.

    scores: float32 (layers, groups, P, B), inf of blocks that always are chosen, -inf of those that never are or where
    attention was dense. chosen: bool, the same shape.
    """

    scores: np.ndarray
    chosen: np.ndarray


class Watch:
    """Collects what a session tells of a prompt that it reads once or, with inputs rounded, twice side by side."""

    def __init__(self, layers: int, groups: int, positions: Sequence[int], blocks: int) -> None:
        self._positions = np.asarray(positions)
        shape = (2, layers, groups, len(positions), blocks)
        self._scores = np.full(shape, -np.inf, np.float32)
        self._chosen = np.zeros(shape, bool)
        self._told: set[tuple[int, int, int, str]] = set()

    def scored(self, layer: int, group: int, first: int, scores: np.ndarray) -> None:
        """See `quantkit.verification.sparse.oracle.Watcher`."""
        self._keep(self._scores, (layer, group, first, "scores"), scores)

    def observer(self, layer: int, group: int, first: int, chosen: np.ndarray) -> None:
        """See `quantkit.verification.sparse.oracle.Watcher`."""
        self._keep(self._chosen, (layer, group, first, "choices"), chosen)

    def _keep(self, into: np.ndarray, of: tuple[int, int, int, str], rows: np.ndarray) -> None:
        again = of in self._told
        self._told.add(of)
        layer, group, first, _ = of
        here = np.flatnonzero((self._positions >= first) & (self._positions < first + len(rows)))
        into[int(again), layer, group, here, : rows.shape[1]] = rows[self._positions[here] - first]

    @property
    def exact(self) -> Choices:
        """Of the first reading."""
        return Choices(self._scores[0], self._chosen[0])

    @property
    def rounded(self) -> Choices:
        """Of the second."""
        return Choices(self._scores[1], self._chosen[1])


def deviations(one: Choices, other: Choices) -> np.ndarray:
    """Root mean square and largest, over groups, positions and blocks, of the differences of logarithms of scores,
    (layers, 2)."""
    found = np.zeros((len(one.scores), 2))
    for layer, (left, right) in enumerate(zip(one.scores, other.scores, strict=True)):
        some = (left > 0) & (right > 0) & np.isfinite(left) & np.isfinite(right)
        if some.any():
            difference = np.log(left[some], dtype=np.float64) - np.log(right[some], dtype=np.float64)
            found[layer] = np.sqrt(np.square(difference).mean()), np.abs(difference).max()
    return found


@dataclass(frozen=True, slots=True)
class ListFindings:
    """lists: of blocks that were compared, one for each layer, group and position; same: of these, the equal ones.
    decided: share of blocks that no near-tie excuses. problems: a line for each layer that chooses otherwise.
    """

    lists: int
    same: int
    decided: float
    problems: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line of text."""
        return (
            f"{self.same:,} of {self.lists:,} lists of blocks are the same, and {self.decided:.2%} of their blocks are "
            "held to them; the others are near-ties"
        )


def compared_lists(
    trusted: Choices, tested: Choices, bounds: Sequence[tuple[float, float]], positions: Sequence[int]
) -> ListFindings:
    """Hold the blocks that `tested` chose to those that `trusted` did.

    bounds: of each layer, how far apart logarithms of scores must lie to decide; the second number is for a layer
    behind one in which a near-tie fell otherwise, from where on some token's stream is another.
    """
    problems, lists, same, decided, blocks = [], 0, 0, 0, 0
    for layer, bound in enumerate(bounds):
        scores, wanted, found = trusted.scores[layer], trusted.chosen[layer], tested.chosen[layer]
        must, must_not = _decided(scores, wanted, bound[0] if same == lists else max(bound))
        wrong = (must & ~found) | (must_not & found)
        counts = wanted.sum(axis=-1) != found.sum(axis=-1)
        lists += wanted[..., 0].size
        same += int((wanted == found).all(axis=-1).sum())
        candidates = wanted.any(axis=-1, keepdims=True) & (scores > -np.inf)
        decided += int(((must | must_not) & candidates).sum())
        blocks += int(candidates.sum())
        bad = np.argwhere(wrong.any(axis=-1) | counts)
        if len(bad):
            group, place = bad[0]
            problems.append(_problem(layer, int(group), positions[place], wanted[group, place], found[group, place]))
            problems[-1] += f"; so do {len(bad)} of its {counts.size} lists"
    return ListFindings(lists, same, decided / max(1, blocks), tuple(problems))


def _decided(scores: np.ndarray, chosen: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks must be chosen, and which must not, by scores and choices (groups, P, B)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log(np.maximum(scores, 0), dtype=np.float64)
        best_left = np.where(chosen, -np.inf, level).max(axis=-1, keepdims=True)
        last_taken = np.where(chosen, level, np.inf).min(axis=-1, keepdims=True)
        left_any = (~chosen & (scores > -np.inf)).any(axis=-1, keepdims=True)
        must = chosen & (np.isposinf(scores) | ~left_any | (level - best_left > bound))
        must_not = ~chosen & (np.isneginf(scores) | (last_taken - level > bound))
    return must, must_not


def _problem(layer: int, group: int, position: int, wanted: np.ndarray, found: np.ndarray) -> str:
    lacks, has = np.flatnonzero(wanted & ~found).tolist(), np.flatnonzero(found & ~wanted).tolist()
    told = [f"without {_few(lacks)}"] if lacks else []
    told += [f"with {_few(has)}"] if has else []
    return (
        f"block {layer}, key-value head {group}, token {position}: it attends to {int(found.sum())} blocks "
        f"{' and '.join(told)}, the original to {int(wanted.sum())}"
    )


def _few(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:3]))
    return shown if len(numbers) <= 3 else f"{shown} and {len(numbers) - 3} more"

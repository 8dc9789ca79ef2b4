"""The choice of least loss at a size, against all choices there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from quantkit.pipeline.mixtures import knapsack
from quantkit.pipeline.mixtures.knapsack import Item, best_choice


def random_groups(seed: int, *, unit: int = 1) -> list[list[Item]]:
    random = np.random.default_rng(seed)
    return [
        [Item(int(random.integers(1, 30)) * unit, float(random.random())) for _ in range(random.integers(1, 5))]
        for _ in range(6)
    ]


def total(groups: list[list[Item]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    items = [group[number] for group, number in zip(groups, chosen, strict=True)]
    return sum(item.nbytes for item in items), sum(item.loss for item in items)


def by_trying(groups: list[list[Item]], budget: int) -> float | None:
    every = (total(groups, chosen) for chosen in product(*(range(len(group)) for group in groups)))
    return min((loss for nbytes, loss in every if nbytes <= budget), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_that_fits_loses_less(seed: int) -> None:
    groups = random_groups(seed, unit=1 + seed % 3)
    for budget in (20, 60, 90, 150, 400):
        chosen, least = best_choice(groups, budget), by_trying(groups, budget)
        if least is None:
            assert chosen is None
            continue
        assert chosen is not None
        nbytes, loss = total(groups, chosen)
        assert nbytes <= budget
        assert loss == pytest.approx(least)
        assert best_choice(groups, budget) == chosen


@pytest.mark.parametrize("seed", range(10))
def test_in_coarse_units_the_choice_still_fits_and_lies_between_bounds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = random_groups(seed, unit=7)
    monkeypatch.setattr(knapsack, "MOST_CELLS", 16)
    low, smallest = total(groups, [min(range(len(g)), key=lambda n, g=g: g[n].nbytes) for g in groups])
    budget = low + 200
    chosen, least = best_choice(groups, budget), by_trying(groups, budget)
    assert chosen is not None
    assert least is not None
    nbytes, loss = total(groups, chosen)
    assert nbytes <= budget
    assert least - 1e-12 <= loss <= smallest


def test_a_loss_that_is_no_number_is_worse_than_any_other() -> None:
    groups = [[Item(1, float("nan")), Item(1, 5.0)], [Item(1, float("inf")), Item(2, 1e6)]]
    assert best_choice(groups, 3) == [1, 1]
    assert best_choice(groups, 2) == [1, 0]


def test_the_first_of_equals_is_taken() -> None:
    assert best_choice([[Item(3, 1.0), Item(3, 1.0), Item(2, 1.0)]], 3) == [0]

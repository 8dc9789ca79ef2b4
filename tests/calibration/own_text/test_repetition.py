"""Repetition in token ids, against literal cases and a definition followed step by step."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.calibration.own_text.repetition import COPIES, LONGEST_PERIOD, SHORTEST, LoopWatch, repeated_tokens


def first_loop(ids: list[int]) -> int | None:
    """How many tokens the watch has seen when it first tells of a loop."""
    rows, watch = np.array([ids]), LoopWatch(1)
    return next((position + 1 for position in range(len(ids)) if watch.look(rows, position)[0]), None)


def counted(ids: list[int]) -> int:
    """Tokens in repetitions, by the definition."""
    found = np.zeros(len(ids), bool)
    for period in range(1, LONGEST_PERIOD + 1):
        least = max(COPIES * period, SHORTEST)
        for start in range(len(ids) - least + 1):
            stretch = ids[start : start + least]
            if stretch[period:] == stretch[:-period]:
                found[start : start + least] = True
    return int(found.sum())


FILLER = list(range(1000, 1100))
CASES = {
    "one token": ([*FILLER, *[7] * 40], 100 + SHORTEST, 40),
    "one token, too few": ([*FILLER, *[7] * (SHORTEST - 1), *FILLER], None, 0),
    "a pair": ([*FILLER, *[7, 8] * 20], 100 + SHORTEST, 40),
    "a line of ten, three times": ([*FILLER, *list(range(10)) * 3, 5], 130, 30),
    "a line of ten, twice": ([*FILLER, *list(range(10)) * 2, *FILLER], None, 0),
    "the longest period": ([*range(LONGEST_PERIOD)] * 3, 3 * LONGEST_PERIOD, 3 * LONGEST_PERIOD),
    "a longer period": ([*range(LONGEST_PERIOD + 1)] * 4, None, 0),
    "counting": ([i // 2 for i in range(200)], None, 0),
    "lines that differ in one token": ([t for i in range(30) for t in (1, 2, 3, 100 + i)], None, 0),
    "it ends in a part of a copy": ([*list(range(10)) * 3, 0, 1, 2], 30, 33),
    "nothing": ([1, 2, 3], None, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_literal_cases(name: str):
    ids, first, repeated = CASES[name]
    assert first_loop(ids) == first
    assert repeated_tokens([np.array(ids)]) == repeated == counted(ids)


@pytest.mark.parametrize("seed", range(5))
def test_random_ids_of_few_kinds(seed: int):
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.tile(rng.integers(3, size=rng.integers(1, 20)), rng.integers(1, 9)) for _ in range(12)])
    assert repeated_tokens([ids]) == counted(ids.tolist()) > 0


def test_sequences_do_not_go_on_in_the_next():
    half = np.full(SHORTEST - 1, 7)
    assert repeated_tokens([half, half]) == 0
    assert repeated_tokens([np.full(SHORTEST, 7), half]) == SHORTEST


def test_rows_are_watched_apart_and_begin_anew():
    rows, watch = np.array([[7] * 60, list(range(60))]), LoopWatch(2)
    told = []
    for position in range(60):
        looping = watch.look(rows, position)
        told.append(looping.tolist())
        if looping[0]:
            watch.begin(0, position + 1)
    assert not any(second for _, second in told)
    first, again = [position for position, (first, _) in enumerate(told) if first]
    assert first == SHORTEST - 1
    assert again == first + SHORTEST

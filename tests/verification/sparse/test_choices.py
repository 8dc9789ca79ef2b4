"""Lists of blocks: what scores decide must be so, what they do not may be otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.verification.sparse.choices import Choices, Watch, compared_lists, deviations

INF = np.inf


def choices(scores: list[float], *chosen: int) -> Choices:
    """Of one layer, group and position."""
    marks = np.isin(np.arange(len(scores)), chosen)
    return Choices(np.array(scores, np.float32).reshape(1, 1, 1, -1), marks.reshape(1, 1, 1, -1))


SCORES = [INF, 8.0, 4.0, 3.9, 1.0, 0.0, INF, -INF]
RIGHT = (0, 1, 2, 6)


@pytest.mark.parametrize(
    ("bound", "chosen", "passes"),
    [
        (0.1, RIGHT, True),
        (0.1, (0, 1, 3, 6), True),  # 4.0 and 3.9 are a near-tie
        (0.01, (0, 1, 3, 6), False),
        (0.1, (0, 1, 4, 6), False),
        (0.1, (0, 2, 3, 6), False),  # without the best
        (0.8, (0, 2, 3, 6), True),
        (9.0, (0, 1, 2, 5), False),  # without one that always is chosen
        (9.0, (0, 1, 6, 7), False),  # with one that never is
        (9.0, (0, 1, 6), False),  # fewer
        (9.0, (0, 1, 2, 3, 6), False),  # more
        (9.0, (), False),
    ],
)
def test_what_scores_decide(bound: float, chosen: tuple[int, ...], passes: bool) -> None:
    found = compared_lists(choices(SCORES, *RIGHT), choices(SCORES, *chosen), [(bound, 0.0)], [99])
    assert (found.problems == ()) == passes
    assert found.lists == 1
    assert found.same == (chosen == RIGHT)


def test_the_problem_names_the_place() -> None:
    found = compared_lists(choices(SCORES, *RIGHT), choices(SCORES, 0, 1, 4, 6), [(0.1, 0.1)], [99])
    assert found.problems == (
        "block 0, key-value head 0, token 99: it attends to 4 blocks without 2 and with 4, the original to 4; "
        "so do 1 of its 1 lists",
    )


def test_where_all_is_chosen_nothing_may_be_left_out() -> None:
    scores = [0.0, 0.0, 1e-9]
    assert compared_lists(choices(scores, 0, 1, 2), choices(scores, 0, 2), [(9.0, 9.0)], [0]).problems


def test_behind_a_near_tie_that_fell_otherwise_the_wider_bound_holds() -> None:
    one, other = choices([4.0, 3.9, 2.0], 0), choices([4.0, 3.9, 2.0], 1)
    far = choices([4.0, 3.9, 2.0], 2)
    two = [Choices(np.concatenate((a.scores, b.scores)), np.concatenate((a.chosen, b.chosen))) for a, b in
           [(one, one), (one, far), (other, far)]]  # fmt: skip
    bounds = [(0.1, 1.0), (0.1, 1.0)]
    assert compared_lists(two[0], two[1], bounds, [0]).problems
    assert not compared_lists(two[0], two[2], bounds, [0]).problems


def test_deviations_are_of_logarithms() -> None:
    one, other = choices([INF, 2.0, 1.0, 0.0], 0, 1), choices([INF, 2.0, np.e, 0.0], 0, 1)
    np.testing.assert_allclose(deviations(one, other), [[np.sqrt(0.5), 1.0]], rtol=1e-6)
    assert deviations(choices([INF], 0), choices([INF], 0)).tolist() == [[0.0, 0.0]]


def test_a_watch_keeps_the_positions_it_was_made_for() -> None:
    watch = Watch(1, 1, [1, 4], 3)
    for first, reading in ((0, 1.0), (3, 2.0), (0, 3.0), (3, 4.0)):
        watch.scored(0, 0, first, np.full((3, 1 + first // 3), reading) + np.arange(3)[:, None] / 10)
        watch.observer(0, 0, first, np.full((3, 1), True))
    np.testing.assert_allclose(watch.exact.scores[0, 0], [[1.1, -INF, -INF], [2.1, 2.1, -INF]])
    np.testing.assert_allclose(watch.rounded.scores[0, 0], [[3.1, -INF, -INF], [4.1, 4.1, -INF]])
    assert watch.exact.chosen[0, 0].tolist() == [[True, False, False]] * 2

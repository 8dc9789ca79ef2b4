"""Which sequences are left out together, and how much their tokens count."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from quantkit.calibration.folds import MOST, fold_names, folds_of, token_weights
from quantkit.calibration.samples import Samples, Source, joined


def samples(lengths: Mapping[str, list[int]], weights: Mapping[str, float] | None = None) -> Samples:
    """Sequences of each source, by its name."""
    parts = [
        (
            Source(
                name=name,
                kind="text",
                digest="",
                weight=(weights or {}).get(name, 1.0),
                own=name in {*KINDS, "own text"},
            ),
            [np.zeros(length, np.int64) for length in given],
        )
        for name, given in lengths.items()
    ]
    return joined(parts)


def by_source(made: Samples) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for fold, origin in zip(folds_of(made), made.origins, strict=True):
        found.setdefault(made.coverage.sources[origin].name, set()).add(fold)
    return found


FIVE = [9] * 5
KINDS = [f"own text: {kind}" for kind in ("prose", "chinese", "dialogue", "code", "mathematics", "lists")]


@pytest.mark.parametrize(
    ("names", "folds"),
    [
        (["a", "b"], {"a": {0}, "b": {1}}),
        (["a", "b", "c"], {"a": {0}, "b": {1}, "c": {2}}),
        (["a", "b", "c", "d"], {"a": {0}, "b": {0}, "c": {1}, "d": {2}}),
        (["a", "own text"], {"a": {0}, "own text": {1}}),
        (["a", "b", "c", "own text"], {"a": {0}, "b": {0}, "c": {1}, "own text": {2}}),
        (["a", *KINDS], {"a": {0}} | {key: {1} for key in KINDS[:3]} | {key: {2} for key in KINDS[3:]}),
        (["a", "b", *KINDS], {"a": {0}, "b": {1}} | {key: {2} for key in KINDS}),
        (KINDS, {kind: {number // 2} for number, kind in enumerate(KINDS)}),
        (KINDS[:2], {KINDS[0]: {0}, KINDS[1]: {1}}),
    ],
)
def test_a_source_is_left_out_as_a_whole(names: list[str], folds: dict[str, set[int]]):
    made = samples(dict.fromkeys(names, FIVE))
    assert by_source(made) == folds
    named = fold_names(made)
    assert len(named) == len(set().union(*folds.values()))
    for name, (fold,) in folds.items():
        assert name in named[fold].split(" + ")


def test_a_file_is_not_own_text_by_its_name():
    assert by_source(samples({"own text.txt": FIVE, **dict.fromkeys(KINDS[:2], FIVE)})) == {
        "own text.txt": {0},
        KINDS[0]: {1},
        KINDS[1]: {2},
    }


def test_a_single_source_is_cut_into_runs():
    made = samples({"a": [9] * 7})
    assert folds_of(made) == (0, 0, 0, 1, 1, 2, 2)
    assert fold_names(made) == ("a, part 1 of 3", "a, part 2 of 3", "a, part 3 of 3")
    assert folds_of(samples({"a": [9]})) == (0,)


def test_sources_count_by_their_weights_and_not_by_their_tokens():
    lengths, weights = {"a": [104] * 3, "b": [34] * 2, "c": [64]}, {"a": 1.0, "b": 3.0}
    made = samples(lengths, weights)
    sums = dict.fromkeys(lengths, 0.0)
    for row, origin, weight in zip(made.sequences, made.origins, token_weights(made, 4), strict=True):
        sums[made.coverage.sources[origin].name] += weight * (len(row) - 4)
    assert sums == pytest.approx({"a": 420 / 5, "b": 420 * 3 / 5, "c": 420 / 5})


def test_a_source_of_one_line_does_not_decide():
    made = samples({"a": [504] * 9, "line": [6]})
    weights = dict(zip(made.origins, token_weights(made, 4), strict=True))
    assert weights[1] == MOST
    assert 0.5 < weights[0] < 0.51


def test_sequences_that_are_skipped_whole_count_nothing():
    made = samples({"a": [504] * 2, "short": [3, 4]})
    assert {weight for weight, origin in zip(token_weights(made, 4), made.origins, strict=True) if origin} == {0.0}

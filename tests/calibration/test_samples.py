"""Options of calibration, and sequences of several sources as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.samples import CalibrationFile, CalibrationOptions, Coverage, Source, joined, merged
from quantkit.errors import BadOption

A, B = CalibrationFile(path=Path("a.txt")), CalibrationFile(path=Path("b.txt"), weight=3.0)


def source(name: str, weight: float = 1.0) -> Source:
    return Source(name=name, kind="text", digest=name, weight=weight)


def rows(*lengths: int, token: int) -> list[np.ndarray]:
    return [np.full(length, token, np.int64) for length in lengths]


@pytest.mark.parametrize(
    ("option", "value"),
    [("sequences", 0), ("sequences", 1 << 33), ("length", 1), ("length", 1 << 25), ("seed", -1), ("seed", 1 << 63)],
)
def test_options_that_mean_nothing_are_refused(option: str, value: int):
    with pytest.raises(BadOption, match=f"{option} must be from .* is {value:,}$"):
        CalibrationOptions(**{option: value})


def test_nothing_to_calibrate_on_is_refused():
    with pytest.raises(BadOption, match="nothing to calibrate on"):
        CalibrationOptions(own_text=False)


def test_fewer_sequences_than_sources_are_refused():
    assert CalibrationOptions(files=(A, B), sequences=3).shares() == [1, 1, 1]
    with pytest.raises(BadOption, match="2 calibration sequences cannot come from 3 sources"):
        CalibrationOptions(files=(A, B), sequences=2)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.txt", "a.txt", 1.0),
        ("a.txt:0.3", "a.txt", 0.3),
        ("a.txt:2", "a.txt", 2.0),
        ("folder:1/a.txt", "folder:1/a.txt", 1.0),
        ("a:b.txt:1e-3", "a:b.txt", 0.001),
        (":5", ":5", 1.0),
        ("a.txt:", "a.txt:", 1.0),
    ],
)
def test_a_weight_stands_behind_the_last_colon(text: str, path: str, weight: float):
    assert CalibrationFile.parse(text) == CalibrationFile(path=Path(path), weight=weight)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e7"])
def test_weights_that_mean_nothing_are_refused(weight: str):
    with pytest.raises(BadOption, match=r"a\.txt: a calibration weight must be above 0 and at most 1,000,000"):
        CalibrationFile.parse(f"a.txt:{weight}")


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        (CalibrationOptions(sequences=7), [7]),
        (CalibrationOptions(files=(A,), sequences=8), [4, 4]),
        (CalibrationOptions(files=(A,), own_text=False, sequences=7), [7]),
        (CalibrationOptions(files=(A, B), sequences=53), [11, 31, 11]),
        (CalibrationOptions(files=(A, B), own_text=False, sequences=42), [11, 31]),
    ],
)
def test_sources_share_the_sequences_by_weight(options: CalibrationOptions, shares: list[int]):
    assert options.shares() == shares
    assert sum(shares) == options.sequences


def test_sources_are_mixed_evenly_and_counted_apart():
    samples = joined([(source("a"), rows(3, 4, 5, 6, token=1)), (source("b", 2.0), rows(9, 9, token=2))], seed=5)
    assert samples.origins == (0, 1, 0, 0, 1, 0)
    assert [len(row) for row in samples.sequences] == [3, 9, 4, 5, 9, 6]
    coverage = samples.coverage
    assert (coverage.sequences, coverage.tokens, coverage.longest, coverage.distinct_tokens) == (6, 36, 9, 2)
    assert [(one.name, one.weight, one.sequences, one.tokens) for one in coverage.sources] == [
        ("a", 1.0, 4, 18),
        ("b", 2.0, 2, 18),
    ]
    assert Coverage.from_json(coverage.to_json()) == coverage


def test_merged_sequences_are_those_of_all():
    one = joined([(source("a"), rows(3, 4, token=1)), (source("b"), rows(9, token=2))], notes=["first"])
    two = joined([(source("c"), rows(7, 7, token=3))], seed=11, notes=["second"])
    samples = merged([one, two])
    assert [part.name for part in samples.coverage.sources] == ["a", "b", "c"]
    assert (samples.coverage.seed, samples.coverage.notes) == (11, ("first", "second"))
    for number, token in enumerate((1, 2, 3)):
        mine = [row for row, origin in zip(samples.sequences, samples.origins, strict=True) if origin == number]
        assert {int(value) for row in mine for value in row} == {token}

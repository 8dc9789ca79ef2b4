"""The loss curve of a manifest, and its picture."""

from __future__ import annotations

import sys

import pytest

from quantkit.training.curve import POINTS, loss_picture, thinned


def test_a_short_curve_is_kept_as_it_is() -> None:
    curve = [(0, "QAT", 3.0), (1, "QAT", 2.0), (2, "distillation", 1.0)]
    assert thinned(curve) == [list(point) for point in curve]
    assert thinned([]) == []


def test_a_long_curve_becomes_means_of_equal_runs() -> None:
    curve = [(step, "QAT", float(step)) for step in range(4 * POINTS)] + [(4 * POINTS, "distillation", 7.0)]
    found = thinned(curve)
    assert len(found) == POINTS + 1
    assert found[0] == [3, "QAT", 1.5]
    assert found[-1] == [4 * POINTS, "distillation", 7.0]


def test_a_picture_is_a_png_and_the_same_every_time() -> None:
    pytest.importorskip("matplotlib")
    report = {"curve": [[0, "reconstruction, block 1", 0.5], [1, "reconstruction, block 2", 0.25], [2, "QAT", 3.0]]}
    made = loss_picture(report)
    assert made is not None
    assert made.startswith(b"\x89PNG\r\n")
    assert loss_picture(report) == made
    assert loss_picture({"curve": []}) is not None


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert loss_picture({"curve": []}) is None

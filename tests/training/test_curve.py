"""The loss curve of a manifest, and its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantkit.errors import MissingDependency, OutputExists
from quantkit.training.curve import POINTS, thinned, write_loss_picture


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


def test_a_picture_is_a_png_and_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = {"curve": [[0, "reconstruction, block 1", 0.5], [1, "reconstruction, block 2", 0.25], [2, "QAT", 3.0]]}
    target = tmp_path / "m.loss.png"
    write_loss_picture(target, report)
    made = target.read_bytes()
    assert made.startswith(b"\x89PNG\r\n")
    write_loss_picture(target, {"curve": []})
    assert target.read_bytes() != made
    write_loss_picture(target, report)
    assert target.read_bytes() == made


def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "m.loss.png").write_bytes(b"a holiday")
    with pytest.raises(OutputExists, match="nothing that this command wrote"):
        write_loss_picture(tmp_path / "m.loss.png", {"curve": []})
    assert (tmp_path / "m.loss.png").read_bytes() == b"a holiday"


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match="matplotlib"):
        write_loss_picture(tmp_path / "m.loss.png", {"curve": []})

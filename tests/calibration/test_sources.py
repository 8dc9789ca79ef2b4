"""Files and own text as the sources of one calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.calibration.samples import CalibrationFile, CalibrationOptions
from quantkit.calibration.sources import calibration_samples
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint

ENGLISH = "\n".join(f"The {number}th line of the text says little." for number in range(300))
NUMBERS = "\n".join(str(number**3) for number in range(900))


def files(folder: Path, *texts: str, weights: tuple[float, ...] = ()) -> tuple[CalibrationFile, ...]:
    made = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.txt"
        path.write_text(text, encoding="utf-8")
        made.append(CalibrationFile(path=path, weight=weights[number] if weights else 1.0))
    return tuple(made)


def test_own_text_joins_the_files(tmp_path: Path, checkpoint: Checkpoint):
    options = CalibrationOptions(files=files(tmp_path, ENGLISH, NUMBERS), sequences=9, length=24)
    made = calibration_samples(checkpoint, options)
    own = [source for source in made.coverage.sources if source.own]
    assert [source.name for source in made.coverage.sources if not source.own] == ["0.txt", "1.txt"]
    assert sum(source.sequences for source in own) == 3
    assert sum(source.weight for source in own) == pytest.approx(1.0)
    assert made.coverage.sequences == 9
    assert made.coverage.seed == 0


def test_files_alone_need_no_generation(tmp_path: Path, checkpoint: Checkpoint):
    options = CalibrationOptions(files=files(tmp_path, ENGLISH), own_text=False, sequences=5, length=24)
    made = calibration_samples(checkpoint, options)
    assert [(source.name, source.sequences) for source in made.coverage.sources] == [("0.txt", 5)]
    assert made.coverage.seed is None
    (note,) = made.coverage.notes
    assert "the given files alone" in note


def test_a_file_that_has_far_less_than_is_wanted_is_named(tmp_path: Path, checkpoint: Checkpoint):
    line, *_ = files(tmp_path, "one line")
    made = calibration_samples(checkpoint, CalibrationOptions(files=(line,), sequences=8, length=48))
    (note,) = made.coverage.warnings
    assert "0.txt: only" in note
    assert "of 192 tokens that were wanted" in note


def test_the_same_text_twice_is_one_source(tmp_path: Path, checkpoint: Checkpoint):
    twice = files(tmp_path, ENGLISH, ENGLISH, weights=(1.0, 0.5))
    made = calibration_samples(checkpoint, CalibrationOptions(files=twice, own_text=False, sequences=6, length=24))
    once = calibration_samples(checkpoint, CalibrationOptions(files=twice[:1], own_text=False, sequences=6, length=24))
    assert [row.tolist() for row in made.sequences] == [row.tolist() for row in once.sequences]
    assert [(source.name, source.weight) for source in made.coverage.sources] == [("0.txt", 1.5)]
    note, alone = made.coverage.notes
    assert "the given files alone" in alone
    assert "0.txt" in note
    assert "1.txt" in note
    assert "the same text" in note


def test_files_of_one_name_are_told_apart(tmp_path: Path, checkpoint: Checkpoint):
    for folder, text in (("a", ENGLISH), ("b", NUMBERS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
    both = tuple(CalibrationFile(path=tmp_path / folder / "text.txt") for folder in "ab")
    made = calibration_samples(checkpoint, CalibrationOptions(files=both, own_text=False, sequences=4, length=24))
    assert [source.name for source in made.coverage.sources] == ["text.txt", "text.txt (2)"]


def test_an_empty_file_among_others_is_refused_before_anything_is_generated(tmp_path: Path, checkpoint: Checkpoint):
    told: list[str] = []
    options = CalibrationOptions(files=files(tmp_path, ENGLISH, " \n"), sequences=9, length=24)
    with pytest.raises(BadOption, match=r"1\.txt: no text to calibrate on"):
        calibration_samples(checkpoint, options, progress=lambda what, *_: told.append(what))
    assert "generating calibration text" not in told


def test_sequences_beyond_the_models_context_are_refused(checkpoint: Checkpoint):
    with pytest.raises(BadOption, match="65 tokens exceed the model's context of 64"):
        calibration_samples(checkpoint, CalibrationOptions(length=65))

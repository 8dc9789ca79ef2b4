"""Models without a tokenizer, or with one that is not read: recorded, quantized and verified on token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit import CalibrationFile, CalibrationOptions, QuantizeOptions, quantize, read_golden, record_golden, verify
from quantkit.errors import BadOption, InconsistentCheckpoint, QuantkitError
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.tiny import write_tiny_checkpoint

UNIGRAM = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}}
WORDPIECE = {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}}
FOREIGN = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": {"type": "Precompiled"}}
FILES = {"none": None, "unigram": UNIGRAM, "WordPiece": WORDPIECE, "a normalizer that is not read": FOREIGN}
REASONS = {"none": "has no tokenizer", "unigram": "'Unigram'", "WordPiece": "'WordPiece'"}


def model(folder: Path, kind: str) -> Path:
    write_tiny_checkpoint(folder, layers=1, hidden=128, intermediate=128, context=256)
    if FILES[kind] is not None:
        (folder / "tokenizer.json").write_text(json.dumps(FILES[kind]))
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_work_goes_on_with_token_ids_and_it_is_said_why(kind: str, tmp_path: Path) -> None:
    source, reason = model(tmp_path / "model", kind), REASONS.get(kind, "'Precompiled'")
    done = record_golden(source, tmp_path / "golden.bin")
    assert any(reason in note and "drawn at random" in note for note in done.manifest["notes"]), done.manifest["notes"]
    golden = read_golden(done.path)
    assert {prompt.text for prompt in golden.prompts} == {""}
    assert all(0 <= token < 300 for prompt in golden.prompts for token in prompt.token_ids)
    options = QuantizeOptions(
        scheme=AffineGroups(bits=4, group_size=32), calibration=CalibrationOptions(sequences=2, length=32)
    )
    made = quantize(source, tmp_path / "quantized", options)
    calibration = made.manifest["report"]["calibration"]
    (note,) = calibration["notes"]
    assert reason in note
    assert [(source["name"], source["own"]) for source in calibration["sources"]] == [("own text: drawn", True)]
    for against in ({"golden": done.path}, {"against": source}):
        report = verify(made.path, engine="reference", **against)
        assert report.passed, report
        assert any("drawn at random" in note for note in report.notes), report.notes


def test_the_same_ids_are_drawn_every_time(tmp_path: Path) -> None:
    source = model(tmp_path / "model", "none")
    first, second = (read_golden(record_golden(source, tmp_path / f"{i}.bin").path) for i in range(2))
    assert first.prompts == second.prompts


def test_a_text_to_calibrate_on_needs_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    options = QuantizeOptions(
        scheme=AffineGroups(bits=4, group_size=32),
        calibration=CalibrationOptions(files=(CalibrationFile(path=tmp_path / "text.txt"),), own_text=False, length=32),
    )
    with pytest.raises(BadOption, match="no tokenizer, so no text can be read"):
        quantize(model(tmp_path / "model", "none"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_tokenizer_is_refused_as_before(tmp_path: Path) -> None:
    source = model(tmp_path / "model", "none")
    broken = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}
    (source / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(InconsistentCheckpoint, match="share id 0"):
        record_golden(source, tmp_path / "golden.bin")
    with pytest.raises(QuantkitError):
        verify(source, against=source, engine="reference")

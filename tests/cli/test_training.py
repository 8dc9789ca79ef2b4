"""`quantize --recover`: from text on disk to a trained artifact, its figures, and the picture of its loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.cli.app import main

pytest.importorskip("torch", reason="training needs the extra quantkit[torch]")
ROUNDED = ("--method", "rtn", "--bits", "2", "--group-size", "64")
SHORT = ("--recover", "2", "--train-length", "24", "--batch", "1")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog, and then it comes back.\n" * 60, encoding="utf-8")
    return file


def test_a_trained_model_is_written_with_its_figures_and_its_curve(golden_model, text, tmp_path, capsys):
    out = tmp_path / "trained"
    assert main(["quantize", str(golden_model), *ROUNDED, *SHORT, "--text", str(text), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    for stage in ("teacher", "naive", "start", "distillation"):
        assert any(line.startswith(f"{stage}: perplexity ") for line in shown.out.splitlines()), stage
    assert (tmp_path / "trained.loss.png").read_bytes().startswith(b"\x89PNG")
    training = json.loads((out / "quantkit.json").read_text())["report"]["training"]
    assert training["options"]["steps"] == 2
    assert [point[1] for point in training["curve"]] == ["distillation"] * 2
    assert main(["verify", str(out), "--against", str(golden_model), "--engine", "reference"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--text", "FILE"), "--text is for training, and none was asked for"),
        (("--batch", "2"), "--batch is for training"),
        (("--recover", "2"), "there is no text to train on"),
        ((*SHORT, "--text", "FILE", "--micro-batch", "3"), "is not a multiple of the micro-batch"),
        (
            (*SHORT, "--text", "FILE", "--objective", "luck"),
            "objective must be one of distillation, ",
        ),
        ((*SHORT, "--text", "missing.txt"), "missing.txt"),
        (("--recover", "2", "--text", "FILE", "--train-length", "900000"), "sequence"),
        ((*SHORT, "--text", "FILE", "--device", "cuda"), "sees no CUDA device here"),
    ],
)
def test_what_cannot_be_trained_is_one_line(arguments, said, golden_model, text, capsys):
    given, out = [str(text) if word == "FILE" else word for word in arguments], text.parent / "out"
    assert main(["quantize", str(golden_model), *ROUNDED, *given, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not out.exists()

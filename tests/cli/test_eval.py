"""`quantkit eval` as its users see it: tables, one JSON object, a picture, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.cli.app import main
from tests.support.tiny import write_tiny_checkpoint
from tests.support.tokenizer_folders import golden_files

TEXT = str(Path(__file__).resolve().parents[2] / "golden" / "text.txt")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A small model that reads text as the golden one does, evaluated against itself."""
    for name in ("source", "artifact"):
        folder = write_tiny_checkpoint(tmp_path / name, vocab=2048, hidden=64, intermediate=128)
        for file, data in golden_files().items():
            (folder / file).write_bytes(data)
    paths = [str(tmp_path / "artifact"), "--against", str(tmp_path / "source")]
    return ["eval", *paths, "--text", TEXT, "--samples", "3", "--length", "48"]


def test_tables_for_people(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "text.txt: 141 predictions in 3 windows; KL in nats, ± one standard error"
    assert lines[1].split() == ["model", "engine", "size", "bits/weight", "perplexity", "×", "source"]
    assert lines[2].startswith("source (source)  reference")
    assert lines[3].split()[:2] == ["artifact", "reference"]
    assert lines[3].endswith("1.0000 ± 0.0000")
    assert lines[4].split("  ")[0] == ""
    assert lines[6].split() == ["artifact", "0.00", "0.00", "0.00", "100.00%", "100.00%"]
    assert len(lines) == 7
    assert max(map(len, lines)) <= 80


def test_one_object_for_programs_and_a_picture(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs the extra quantkit[plot]")
    plot = tmp_path / "kl.png"
    assert main([*command, "--skip-positions", "8", "--plot", str(plot), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["windows"], found["tokens"], found["positions"], found["skip_positions"]) == (3, 144, 117, 8)
    (artifact,) = found["artifacts"]
    assert artifact["engine"] == "reference"
    assert artifact["from_source"]["kl"] == {"value": 0.0, "error": 0.0}
    assert artifact["perplexity"] == found["source"]["perplexity"]
    assert artifact["floor"] is None
    assert found["plot"] == str(plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--plot", str(plot)]) == 2
    assert "kl.png already exists" in capsys.readouterr().err


def test_an_error_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--length", "4000"], "tokens of text do not fill one window of 4000"),
        (["--skip-positions", "47"], "windows of 48 tokens have 47 predictions, and 47 are to be skipped"),
        (["--engine", "llama-cpp"], "llama-cpp does not load hf"),
        (["--engine", "nonsense"], "nonsense"),
        (["--samples", "99999999999999"], "sequences must be from 1 to 1,048,576"),
    ):
        assert main([*command, *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert message in shown.err

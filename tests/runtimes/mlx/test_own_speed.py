"""mlx-lm's own benchmark: what it says, and how it fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantkit.errors import EngineFailed
from quantkit.runtimes.mlx import own_speed


def test_averages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Trial 1:  ...\nAverages: prompt_tps=109.165, generation_tps=178.127, peak_memory=0.009\n"
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout=text, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert own_speed.own_speed(Path("folder"), 16, 8, 2) == ("mlx_lm.benchmark", 109.165, 178.127)
    assert asked[0][-6:] == ["-p", "16", "-g", "8", "-n", "2"]


@pytest.mark.engine("mlx")
def test_a_folder_that_it_does_not_load_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"mlx_lm.benchmark: "):
        own_speed.own_speed(tmp_path, 4, 2, 1)

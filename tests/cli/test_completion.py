"""Completion in shells: the script, and what quantkit answers to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quantkit.cli.app import main
from tests.support.faults import ROOT


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
def test_a_script_for_each_shell(shell: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", shell]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "wanted", "unwanted"),
    [
        ("quantkit qu", {"quantize"}, {"inspect"}),
        ("quantkit quantize --me", {"--method"}, {"--bits"}),
        ("quantkit quantize --method ", {"rtn", "gptq", "awq"}, {"gguf"}),
        ("quantkit verify --engine ll", {"llama-cpp"}, {"auto"}),
        ("quantkit export g", {"gguf", "gptq"}, {"hf"}),
    ],
)
def test_words_are_completed(typed: str, wanted: set[str], unwanted: set[str]) -> None:
    asked = {"_QUANTKIT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "quantkit"], cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, check=True
    )
    found = set(done.stdout.split())
    assert wanted <= found
    assert not unwanted & found

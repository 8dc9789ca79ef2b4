"""Documentation is an assertion: tables, help and examples are checked against the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.cli.app import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    block = re.search(r"<!-- examples: [^>]*-->\n```console\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ ")]


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_verb_has_an_example_in_the_readme():
    assert {shlex.split(command)[1] for command in readme_commands()} == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert (VERBS[verb].__doc__ or "").split(".")[0][:40] in " ".join(shown.split())


def test_the_examples_of_the_readme_run_in_order(tmp_path, monkeypatch, golden_model, capsys):
    pytest.importorskip("torch", reason="the examples calibrate, which needs the extra quantkit[torch]")
    pytest.importorskip("xllamacpp", reason="the examples verify in llama.cpp, which needs quantkit[llama-cpp]")
    (tmp_path / "golden").symlink_to(golden_model.parent)
    monkeypatch.chdir(tmp_path)
    for command in readme_commands():
        code = main(shlex.split(command)[1:])
        captured = capsys.readouterr()
        assert code == 0, f"{command}: {captured.err}"
        assert captured.out.strip(), f"{command} printed nothing"


def test_links_in_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

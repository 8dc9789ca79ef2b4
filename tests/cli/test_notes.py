"""What is not as it should be in a source is said by every command that reads it, before its work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.cli.app import main
from tests.support.tiny import write_tiny_checkpoint
from tests.support.tokenizer_folders import config_with, golden_files, written

COMMANDS = {
    "inspect": "inspect MODEL --json",
    "plan": "plan MODEL --to gguf:f16,hf --json",
    "export": "export gguf MODEL --type f16 --out OUT --json",
    "quantize": "quantize MODEL --method rtn --group-size 32 --out OUT --json",
    "golden": "golden MODEL --out OUT --json",
}
WORDS = ("legacy", "NOTES.md", "'<|fim_suffix|>'", "are named by generation_config.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_tiny_checkpoint(tmp_path / "m", hidden=64, intermediate=96, vocab=2048, context=512)
    token = {"content": "<|fim_suffix|>", "special": True, "lstrip": True}
    files = golden_files("tokenizer.model", "tokenizer_config.json", "added_tokens.json")
    written(config_with(files, legacy=False, added_tokens_decoder={"2047": token}), folder)
    (folder / "NOTES.md").write_text("")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 2044]}')
    return folder


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_says_it(verb: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in COMMANDS[verb].split()]) == 0
    captured = capsys.readouterr()
    for word in WORDS:
        assert word in captured.err, captured.err
    assert isinstance(json.loads(captured.out), dict)

"""The token that fills batches changes no text, so one that is not there stops no model and is written as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.errors import BadConfig
from quantkit.models.recognition import config_notes, parse_config
from quantkit.protocols import ExportOptions
from tests.support.malformed_folders import edit_json, write_small_checkpoint
from tests.support.tiny import tiny_config

VOCABULARY = 32


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("pad", [-1, None, VOCABULARY, VOCABULARY + 1, 10**9])
@pytest.mark.parametrize("arch", ["native", "llama"])
def test_a_padding_that_is_none_or_beyond_the_vocabulary_is_written_as_none(
    pad: int | None, arch: str, small: Path
) -> None:
    edit_json(small / "config.json", lambda config: config.update(pad_token_id=pad))
    checkpoint = registry.open_checkpoint(small)
    assert checkpoint.spec.pad_token_id is None
    told = [note for note in checkpoint.notes if "pad_token_id" in note]
    assert bool(told) is (pad is not None and pad > 0)
    planned = registry.exporter("hf").prepare(checkpoint, ExportOptions(arch=arch))
    file = next(file for file in planned.files if file.name == "config.json")
    assert json.loads(b"".join(file.units[0].produce()))["pad_token_id"] is None


@pytest.mark.parametrize("pad", [0, 2, VOCABULARY - 1])
def test_a_padding_of_the_vocabulary_is_kept(pad: int, small: Path) -> None:
    edit_json(small / "config.json", lambda config: config.update(pad_token_id=pad))
    assert registry.open_checkpoint(small).spec.pad_token_id == pad


@pytest.mark.parametrize("pad", ["0", 1.5, True, -2, [300]])
def test_a_padding_of_another_kind_is_refused(pad: object) -> None:
    config = tiny_config(vocab=300) | {"pad_token_id": pad}
    with pytest.raises(BadConfig, match="pad_token_id"):
        parse_config(config)
    assert config_notes(config | {"pad_token_id": 0}) == config_notes(config | {"pad_token_id": None})

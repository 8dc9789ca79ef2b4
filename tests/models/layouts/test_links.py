"""Every file that is read of a model's folder passes the gate, also those that tell which container it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.manifest import check_files
from quantkit.errors import QuantkitError, UnsafePath, VerificationFailed
from tests.support.malformed_folders import FIRST, INDEX, write_small_checkpoint
from tests.support.opened import opened_paths
from tests.support.tiny import write_tiny_checkpoint

NAMES = [
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "processor_config.json",
    FIRST,
    INDEX,
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_leads_out_of_the_folder_is_refused_unopened(
    name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    place = small / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text('{"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32}')
    place.symlink_to(outside)
    paths = opened_paths(monkeypatch)
    with pytest.raises(UnsafePath, match="outside the model's folder"):
        registry.open_checkpoint(small)
    assert str(outside) not in paths


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json", "quant_config.json", FIRST])
def test_no_reader_opens_it_while_it_recognizes_a_folder(
    name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small / name).unlink(missing_ok=True)
    (small / name).symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_text('{"bits": 4, "quant_method": "gptq"}')
    paths = opened_paths(monkeypatch)
    for exporter in registry.containers():
        exporter.recognizes(small)
    assert str(tmp_path / "outside") not in paths


def test_a_manifest_that_leads_out_of_the_folder_is_not_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_text('{"manifest_version": 1, "files": {}}')
    (small / "quantkit.json").symlink_to(tmp_path / "outside")
    shutil.copy(small / FIRST, tmp_path / "m.gguf")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "beside" / "m.gguf.quantkit.json").symlink_to(tmp_path / "outside")
    paths = opened_paths(monkeypatch)
    for path in (small, tmp_path / "beside" / "m.gguf"):
        with pytest.raises(UnsafePath, match=r"quantkit\.json is a link"):
            check_files(path)
    with pytest.raises(UnsafePath):
        registry.open_checkpoint(small)
    assert paths == [] or str(tmp_path / "outside") not in paths


def test_a_listed_file_that_leads_out_of_the_folder_fails_unopened(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small / "quantkit.json").write_text(
        '{"manifest_version": 1, "files": {"config.json": {"size": 2, "sha256": "%s"}}}' % ("0" * 64)
    )
    for path in (*small.glob("*.safetensors"), small / INDEX, small / "config.json"):
        path.unlink()
    (tmp_path / "outside").write_text("{}")
    (small / "config.json").symlink_to(tmp_path / "outside")
    paths = opened_paths(monkeypatch)
    with pytest.raises(VerificationFailed, match="link to a file outside"):
        check_files(small)
    assert str(tmp_path / "outside") not in paths


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json", "tokenizer.json", "generation_config.json"])
def test_a_pipe_or_a_device_is_refused_at_once(name: str, small: Path) -> None:
    (small / name).unlink(missing_ok=True)
    os.mkfifo(small / name)
    if name == "quantize_config.json":  # nobody reads it: the folder is dense
        registry.open_checkpoint(small)
        return
    with pytest.raises(QuantkitError, match="not a regular file"):
        registry.open_checkpoint(small)


def test_links_that_nobody_reads_are_harmless(small: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("text")
    (small / "NOTES.md").symlink_to(tmp_path / "outside")
    (small / "image.png").symlink_to(tmp_path / "nowhere")
    (small / "processor_config.json").symlink_to(tmp_path / "nowhere")
    assert registry.open_checkpoint(small).weights


@pytest.mark.parametrize("shards", [1, 2])
def test_what_macos_writes_beside_files_is_no_part_of_the_model(shards: int, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", shards=shards)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    checkpoint = registry.open_checkpoint(folder)
    assert not any("._" in text for text in (*checkpoint.files, *checkpoint.notes))
    if shards == 1:
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "._model.safetensors").rename(folder / "._weights.safetensors")
        assert registry.open_checkpoint(folder).inputs == (folder / "weights.safetensors",)

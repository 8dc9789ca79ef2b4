"""What a later check of the files finds, and what a manifest must be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quantkit.artifacts.manifest import manifest_path
from quantkit.artifacts.publishing import check_files, publish, read_manifest, source_digest
from quantkit.errors import (
    MalformedFile,
    VerificationFailed,
)
from quantkit.files.planned_files import blob
from tests.support.planned import DEMO, file_plan, folder_plan, write_source


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return publish(DEMO, tmp_path / "out").path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return publish(file_plan(), tmp_path / "out.bin").path


def test_untouched_files_pass(artifact: Path, single: Path) -> None:
    assert check_files(artifact) == check_files(single) == []


def test_every_flipped_bit_is_found(artifact: Path, single: Path) -> None:
    for path, container in ((artifact / "model.bin", artifact), (single, single)):
        good = path.read_bytes()
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with pytest.raises(VerificationFailed, match=f"'{path.name}' was changed: its SHA-256 differs"):
                check_files(container)


def test_every_truncation_is_found(artifact: Path, single: Path) -> None:
    for path, container in ((artifact / "model.bin", artifact), (single, single)):
        size = path.stat().st_size
        for length in reversed(range(size)):
            os.truncate(path, length)
            with pytest.raises(VerificationFailed, match=f"'{path.name}' is truncated: {length} bytes of {size}"):
                check_files(container)


def test_appended_bytes_are_found(single: Path) -> None:
    with single.open("ab") as file:
        file.write(b"!")
    with pytest.raises(VerificationFailed, match=r"'out\.bin' is too long: 8 bytes, should be 7"):
        check_files(single)


def test_a_missing_file_is_named(artifact: Path, single: Path) -> None:
    (artifact / "model.bin").unlink()
    with pytest.raises(VerificationFailed, match=r"'model\.bin' is missing$"):
        check_files(artifact)
    single.unlink()
    with pytest.raises(VerificationFailed, match=r"'out\.bin' is missing$"):
        check_files(single)


def test_a_renamed_file_is_named_with_its_new_name(artifact: Path) -> None:
    (artifact / "model.bin").rename(artifact / "weights.bin")
    with pytest.raises(VerificationFailed, match=r"'model\.bin' is missing, it was renamed to 'weights\.bin'$"):
        check_files(artifact)


def test_swapped_files_are_found(tmp_path: Path) -> None:
    out = publish(folder_plan(blob("a", b"1"), blob("b", b"2")), tmp_path / "out").path
    (out / "a").rename(out / "c")
    (out / "b").rename(out / "a")
    (out / "c").rename(out / "b")
    with pytest.raises(VerificationFailed, match=r"'a' was changed.*; 'b' was changed"):
        check_files(out)


def test_a_pipe_in_place_of_a_file_does_not_block(artifact: Path) -> None:
    (artifact / "model.bin").unlink()
    os.mkfifo(artifact / "model.bin")
    with pytest.raises(VerificationFailed, match="not a regular file"):
        check_files(artifact)


def test_a_file_that_was_added_is_noted(artifact: Path) -> None:
    (artifact / "README.md").touch()
    assert check_files(artifact) == [f"{artifact}: 'README.md' is not in the manifest; it was not checked"]


@pytest.mark.parametrize("name", ["model-2.safetensors", "chat_template.jinja", "tokenizer.json"])
def test_a_file_that_was_added_where_loaders_look_for_such_files_fails(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes(b"{}")
    with pytest.raises(VerificationFailed, match=f"'{name}' is not in the manifest"):
        check_files(artifact)


def test_a_manifest_that_lists_nothing_vouches_for_nothing(artifact: Path, single: Path) -> None:
    for path in (artifact, single):
        file = manifest_path(path)
        file.write_text(json.dumps({**json.loads(file.read_text()), "files": {}}))
        with pytest.raises(VerificationFailed, match=r"is not in the manifest|does not list"):
            check_files(path)


def test_a_renamed_single_file_has_no_manifest(single: Path) -> None:
    moved = single.rename(single.with_name("moved.bin"))
    assert read_manifest(moved) is None
    assert check_files(moved) == [f"{moved}: has no manifest (moved.bin.quantkit.json); its files were not checked"]
    with pytest.raises(VerificationFailed, match=r"'out\.bin' is missing"):
        check_files(single)


def test_a_single_file_renamed_with_its_manifest_passes(single: Path) -> None:
    single.with_name("out.bin.quantkit.json").rename(single.with_name("moved.bin.quantkit.json"))
    assert check_files(single.rename(single.with_name("moved.bin"))) == []


def test_nothing_at_all_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"is missing$"):
        check_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[]", "instead of an object"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"name": "gpt"}', "is not a quantkit manifest"),
        ('{"manifest_version": 2}', "manifest version '2', only 1 is known"),
        ('{"manifest_version": 1}', "'files' must give"),
        ('{"manifest_version": 1, "files": {"../x": {"size": 1, "sha256": "%s"}}}' % ("0" * 64), "'files' must give"),
        ('{"manifest_version": 1, "files": {"x": {"size": true, "sha256": "%s"}}}' % ("0" * 64), "'files' must give"),
        ('{"manifest_version": 1, "files": {"x": {"size": 1, "sha256": "0"}}}', "'files' must give"),
        ('{"manifest_version": 1, "files": {"x": 1}}', "'files' must give"),
    ],
)
def test_a_damaged_manifest_is_refused(artifact: Path, text: str, message: str) -> None:
    (artifact / "quantkit.json").write_text(text)
    with pytest.raises(MalformedFile, match=message):
        read_manifest(artifact)


def test_a_source_is_named_without_its_folder(tmp_path: Path) -> None:
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    source = write_source(tmp_path / "source")
    assert source_digest([source]) == [{"name": "in.safetensors", "size": 7, "sha256": digest}]

"""The gate of a model's folder: where a name leads is known before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantkit.errors import IncompleteCheckpoint, IncompleteFile, MalformedFile, QuantkitError, UnsafePath
from quantkit.files.member import open_member, read_member, read_member_json
from tests.support.opened import opened_paths

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is opened from now on."""
    return opened_paths(monkeypatch)


def write(path: Path, data: bytes = b"{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def linked(folder: Path, target: Path, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    return folder


CACHE = "hub/models--o--m"
GOOD = {
    "a file of the folder": ("model", "model/sub/x"),
    "a snapshot": (f"{CACHE}/snapshots/abc", f"{CACHE}/blobs/{DIGEST}"),
    "a snapshot with other names of blobs": (f"{CACHE}/snapshots/abc", f"{CACHE}/blobs/etag-1"),
    "a folder of a snapshot": (f"{CACHE}/snapshots/abc/int4", f"{CACHE}/blobs/{DIGEST}"),
    "a folder of a folder of a snapshot": (f"{CACHE}/snapshots/abc/quantized/int4", f"{CACHE}/blobs/{DIGEST}"),
    "a plain folder": ("local", f"{CACHE}/blobs/{DIGEST}"),
    "a plain folder, a git digest": ("local", f"{CACHE}/blobs/{DIGEST[:40]}"),
    "a plain folder called snapshots": ("snapshots/local", f"{CACHE}/blobs/{DIGEST}"),
}
BAD = {
    "a file beside the folder": ("model", "elsewhere.json"),
    "blobs of no cache": ("model", f"blobs/{DIGEST}"),
    "blobs of a data set": ("model", f"hub/datasets--o--m/blobs/{DIGEST}"),
    "no digest": ("model", f"{CACHE}/blobs/passwd"),
    "a digest in capitals": ("model", f"{CACHE}/blobs/{DIGEST.upper()}"),
    "a folder below the blobs": ("model", f"{CACHE}/blobs/{DIGEST}/{DIGEST}"),
    "another folder of a cache": ("model", f"{CACHE}/refs/{DIGEST}"),
    "a snapshot, the blobs of another model": (f"{CACHE}/snapshots/abc", f"hub/models--o--other/blobs/{DIGEST}"),
    "a snapshot, a file of another snapshot": (f"{CACHE}/snapshots/abc", f"{CACHE}/snapshots/def/x"),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_link_into_the_folder_or_the_cache_is_followed(case: str, tmp_path: Path) -> None:
    place, target = GOOD[case]
    (tmp_path / CACHE / "blobs").mkdir(parents=True)
    folder = linked(tmp_path / place, write(tmp_path / target, b'{"a": 1}'))
    assert read_member_json(folder, "config.json", limit=100) == {"a": 1}


@pytest.mark.parametrize("case", BAD)
def test_a_link_to_any_other_place_is_refused_unopened(case: str, tmp_path: Path, opened: list[str]) -> None:
    place, target = BAD[case]
    (tmp_path / CACHE / "blobs").mkdir(parents=True)
    folder = linked(tmp_path / place, write(tmp_path / target))
    with pytest.raises(UnsafePath, match=r"config\.json is a link to a file outside"):
        read_member(folder, "config.json", 100)
    assert opened == []


def test_a_blob_that_is_a_link_itself_does_not_lead_further(tmp_path: Path, folder: Path, opened: list[str]) -> None:
    blobs = tmp_path / CACHE / "blobs"
    blobs.mkdir(parents=True)
    (blobs / DIGEST).symlink_to(write(tmp_path / "secret"))
    with pytest.raises(UnsafePath):
        read_member(linked(folder, blobs / DIGEST), "config.json", 100)
    (tmp_path / "models--x").mkdir()
    (tmp_path / "models--x" / "blobs").symlink_to(tmp_path)
    with pytest.raises(UnsafePath):
        read_member(linked(folder, tmp_path / "models--x" / "blobs" / "secret", "x"), "x", 100)
    assert opened == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)], ids=["fifo", "dir", "loop"])
def test_what_is_no_regular_file_is_refused_unopened(make: object, folder: Path, opened: list[str]) -> None:
    make(folder / "config.json")  # type: ignore[operator]
    with pytest.raises((MalformedFile, UnsafePath)):
        read_member(folder, "config.json", 100)
    (folder / "device").symlink_to("/dev/zero")
    with pytest.raises(UnsafePath):
        read_member(folder, "device", 100)
    assert opened == []


def test_a_link_that_is_swapped_after_the_look_is_not_followed(folder: Path, tmp_path: Path) -> None:
    file = open_member(folder, write(folder / "config.json").name)
    (folder / "config.json").unlink()
    linked(folder, write(tmp_path / "secret"))
    with pytest.raises(QuantkitError):
        file.read_all(100)


@pytest.mark.parametrize("suffix", [".aria2", ".st"])
def test_a_file_that_is_still_being_filled_is_refused(suffix: str, folder: Path) -> None:
    write(folder / "model.safetensors", bytes(100))
    write(folder / f"model.safetensors{suffix}")
    with pytest.raises(IncompleteFile, match=f"unfinished download: 'model.safetensors{suffix}' lies beside it"):
        open_member(folder, "model.safetensors")


@pytest.mark.parametrize("suffix", [".incomplete", ".crdownload", ".part", ".partial", ".download", ".tmp"])
def test_of_a_missing_file_the_begun_download_is_named(suffix: str, folder: Path) -> None:
    write(folder / f"config.json{suffix}")
    with pytest.raises(IncompleteCheckpoint, match=f"config.json is missing; 'config.json{suffix}' is an unfinished"):
        open_member(folder, "config.json")

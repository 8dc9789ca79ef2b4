"""A file and its manifest are one commit: whatever fails or dies, a reader finds a pair, and the next command mends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from quantkit.artifacts import file_pair
from quantkit.artifacts.manifest import check_files, manifest_path, read_manifest
from quantkit.artifacts.publishing import clean_up, publish
from quantkit.errors import QuantkitError
from tests.support.faults import Stage, alone, content, fail, instrument, memory_folder, plain_disk, plan, shrink

RENAMES = ("_renameat2", "rename", "replace", "link", "unlink", "rmdir")
DISKS = pytest.mark.parametrize("arts", [True, False], ids=["with hard links", "without"])


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in memory."""
    shrink(monkeypatch.setattr)
    with memory_folder() as path:
        yield path


class Dying:
    """Every renaming call fails from the k-th on, as on a disk that has turned read-only."""

    def __init__(self, k: int) -> None:
        self.k, self.count = k, 0

    def __call__(self, name: str) -> None:
        if name in RENAMES:
            self.count += 1
            if self.count >= self.k:
                fail(errno.EROFS)()


@DISKS
@pytest.mark.parametrize("old", [True, False], ids=["over", "new"])
def test_a_disk_that_refuses_from_some_call_on_leaves_a_pair_that_the_next_command_mends(
    fast_path: Path, old: bool, arts: bool
) -> None:
    stage = Stage(fast_path, False, old, arts)
    for k in range(1, 50):
        stage.set(old=True)
        dying = Dying(k)
        error = None
        with pytest.MonkeyPatch.context() as patch:
            if not arts:
                plain_disk(patch.setattr)
            instrument(dying, patch.setattr)
            try:
                stage.publish()
            except QuantkitError as caught:
                error = caught
            stage.check_whole()
            if stage.out.exists():
                assert check_files(stage.out) == []  # read while the disk still refuses
        if dying.count < k:
            break
        assert error is not None or stage.visible() == stage.wanted
        with suppress(QuantkitError):  # it is there already
            stage.publish()
        assert content(stage.out) == stage.wanted
    assert k > 4


@DISKS
def test_a_kill_while_cleaning_up_after_a_kill_leaves_a_pair(fast_path: Path, arts: bool) -> None:
    assert alone("twice", fast_path, int(arts)) > 20


def cut_short(base: Path, after: str, *, old: bytes | None = b"old") -> Path:
    """An output whose commit ended after the named call."""
    out = base / "out"
    if old is not None:
        publish(plan(False, old), out)

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_pair, "settle", lambda *_: None)
        patch.setattr("quantkit.artifacts.publishing.settle", lambda *_: None)
        real = getattr(os, after)
        patch.setattr(os, after, lambda *args, **options: (real(*args, **options), kill()))
        with pytest.raises(Killed):
            publish(plan(False), out, overwrite=True)
    return out


def test_a_reader_finds_the_manifest_of_the_file_that_it_finds(fast_path: Path) -> None:
    for after, mark in (("rename", b"old"), ("link", b"old"), ("replace", b"new")):
        folder = fast_path / after
        folder.mkdir()
        out = cut_short(folder, after)
        assert out.read_bytes().startswith(mark), after
        assert not (folder / "out.quantkit.json").exists()
        assert manifest_path(out).parent.name == ".out.quantkit-part"
        assert read_manifest(out) is not None
        assert check_files(out) == []


def test_what_somebody_put_there_since_is_left_alone(fast_path: Path) -> None:
    for after, old in (("replace", b"old"), ("link", b"old"), ("rename", b"old")):
        folder = fast_path / after
        folder.mkdir()
        out = cut_short(folder, after, old=old)
        out.write_bytes(b"somebody's own")
        clean_up(plan(False), out)
        assert out.read_bytes() == b"somebody's own"
        assert not (folder / ".out.quantkit-part").exists()


def test_a_model_that_is_replaced_by_its_equal_is_never_lost(fast_path: Path) -> None:
    for after in ("rename", "link", "replace"):
        folder = fast_path / after
        folder.mkdir()
        out = cut_short(folder, after, old=b"new")
        clean_up(plan(False), out)
        assert check_files(out) == []
        assert sorted(path.name for path in folder.iterdir()) == ["out", "out.quantkit.json"]


@pytest.mark.parametrize("lie", ["a file", "a link", "a link to a folder"])
def test_a_stage_that_is_no_folder_is_not_read(fast_path: Path, lie: str) -> None:
    out, stage, secret = fast_path / "out", fast_path / ".out.quantkit-part", fast_path / "secret"
    publish(plan(False), out)
    (fast_path / "out.quantkit.json").unlink()
    secret.mkdir()
    (secret / "quantkit.json").write_text("{}")
    if lie == "a file":
        stage.write_text("{}")
    else:
        stage.symlink_to(secret if lie == "a link to a folder" else secret / "quantkit.json")
    assert read_manifest(out) is None
    clean_up(plan(False), out)
    assert (secret / "quantkit.json").read_text() == "{}"
    assert not os.path.lexists(stage)


def test_a_manifest_without_a_file_is_put_back_when_publishing_fails(fast_path: Path) -> None:
    sidecar = fast_path / "out.quantkit.json"
    sidecar.write_text("of a file that was moved away")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_pair, "move_new", lambda *_: fail(errno.EIO)())
        with pytest.raises(QuantkitError):
            publish(plan(False), fast_path / "out")
    assert content(fast_path / "out") == {"out.quantkit.json": b"of a file that was moved away"}

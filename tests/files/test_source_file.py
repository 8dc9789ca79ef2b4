"""A file that changes while it is read is noticed, whatever stamps the change leaves."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.errors import SourceChanged
from quantkit.files.digest import file_digest
from quantkit.files.source_file import SourceFile, check_unchanged

SIZE = 3 << 20


def edited_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"x")


def edited_through_memory(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[SIZE // 2] = 0x78


def written_anew(path: Path) -> None:
    path.write_bytes(b"x" * SIZE)


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"x" * SIZE)
    path.with_suffix(".new").replace(path)


def cut_and_filled(path: Path) -> None:
    os.truncate(path, SIZE // 2)
    os.truncate(path, SIZE)


def swapped_for_a_link(path: Path) -> None:
    path.with_suffix(".new").write_bytes(b"x" * SIZE)
    path.unlink()
    path.symlink_to(path.with_suffix(".new"))


CHANGES = [
    edited_in_place,
    edited_through_memory,
    written_anew,
    replaced,
    cut_and_filled,
    swapped_for_a_link,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(bytes(SIZE))
    return tmp_path / "data"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_with_the_old_stamps_put_back_is_noticed(change: Callable[[Path], None], path: Path) -> None:
    file = SourceFile.open(path)
    state = path.stat()
    change(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == SIZE
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    for look in (lambda: file.read(0, 1), lambda: file_digest(file), lambda: check_unchanged([file])):
        with pytest.raises(SourceChanged, match="changed while it was read"):
            look()


def test_a_change_right_after_the_file_was_written_is_noticed(tmp_path: Path) -> None:
    for number in range(20):  # within one tick of the clock, if `open` did not wait for the next
        path = tmp_path / str(number)
        path.write_bytes(b"a")
        file = SourceFile.open(path)
        path.write_bytes(b"b")
        os.utime(path, ns=(0, file.mtime_ns))
        with pytest.raises(SourceChanged):
            file.read_all(1)


def test_reading_a_file_is_no_change(path: Path) -> None:
    file = SourceFile.open(path)
    assert file.read(0, SIZE).tobytes() == path.read_bytes()
    check_unchanged([file])
    assert SourceFile.open(path) == file

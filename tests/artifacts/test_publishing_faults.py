"""Publishing when the system refuses: every call fails once, the disk is full, the disk lies.

Whatever happens, the final name holds a whole artifact or nothing (with `overwrite`: the old one), the error says
what happened, and the same command run again gives the same bytes and leaves no trace.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.artifacts import atomic_rename as renaming
from quantkit.artifacts.publishing import check_files, publish
from quantkit.errors import NoSpace, OutputExists, QuantkitError, WriteFailed
from quantkit.files.planned_files import PlannedArtifact, blob
from tests.support.faults import (
    IMPORTS,
    ROOT,
    SCENARIOS,
    AtCall,
    Stage,
    content,
    fail,
    instrument,
    megabytes,
    memory_folder,
    plain_disk,
    plan,
    shrink,
)
from tests.support.planned import folder_plan

scenarios = pytest.mark.parametrize(("folder", "old", "atomic"), SCENARIOS.values(), ids=SCENARIOS)


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in memory; three windows of read-back are enough for the model of `plan`."""
    shrink(monkeypatch.setattr)
    with memory_folder() as path:
        yield path


@scenarios
def test_a_failure_of_any_call_leaves_old_or_new_and_says_so(
    fast_path: Path, folder: bool, old: bool, atomic: bool
) -> None:
    number, kind = (errno.EIO, WriteFailed) if old else (errno.ENOSPC, NoSpace)
    stage = Stage(fast_path, folder, old, atomic)
    seen = set()
    for k in range(1, 1000):
        stage.set(old=True)
        at = AtCall(k, fail(number))
        error = None
        with pytest.MonkeyPatch.context() as patch:
            if not atomic:
                plain_disk(patch.setattr)
            instrument(at, patch.setattr)
            try:
                stage.publish()
            except QuantkitError as caught:
                error = caught
        if at.count < k:
            break
        seen.add(at.name)
        stage.check_whole()
        left = {path.name for path in stage.out.parent.iterdir() if path.name.startswith(".")}
        if error is None:  # only cleaning up failed, or something that there is a way around
            assert stage.visible() == stage.wanted
        else:
            assert type(error) is kind, at.name
            assert str(error).startswith(f"{stage.out}: ")
            assert left == set()
            assert stage.visible() in (stage.wanted, stage.before)
        stage.check_rerun()
    else:
        pytest.fail("no run was ever without a failure")
    assert {"open", "mkdir", "posix_fallocate", "pwrite", "fsync", "fdatasync", "preadv", "flock"} <= seen
    print(f"{k - 1} calls failed")


@pytest.mark.parametrize("name", ["pwrite", "fsync", "fdatasync", "posix_fallocate", "preadv", "mkdir"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, WriteFailed)]
)
def test_a_call_that_always_fails_is_one_error(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, kind: type[QuantkitError]
) -> None:
    instrument(lambda called: fail(number)() if called == name else None, monkeypatch.setattr)
    with pytest.raises(kind, match=f"^{fast_path}/out: cannot .*: {os.strerror(number)}$"):
        publish(plan(True), fast_path / "out")
    assert content(fast_path / "out") == {}


def test_everything_is_durable_before_it_is_visible(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []

    def follow(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(first: Any, *rest: Any) -> Any:
            where = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else str(first)
            log.append((name, str(Path(where).relative_to(fast_path))))
            return real(first, *rest)

        monkeypatch.setattr(owner, name, call)

    for name in ("pwrite", "fdatasync", "fsync", "posix_fadvise", "preadv"):
        follow(os, name)
    follow(renaming, "_renameat2")
    publish(plan(True), fast_path / "out")
    stage = ".out.quantkit-part"
    files = [f"{stage}/{name}" for name in ("config.json", "model.bin", "quantkit.json")]
    for file in files:
        steps = [name for name, where in log if where == file]
        checks = [name for name in steps if name != "pwrite"]  # writing goes on meanwhile
        first_read = checks.index("preadv")
        assert checks[first_read - 2 : first_read] in (["fsync", "posix_fadvise"], ["fdatasync", "posix_fadvise"])
        assert "pwrite" not in steps[steps.index("fsync") :]
    synced = [where for name, where in log if name in ("fsync", "_renameat2")]
    assert synced == [*files, stage, stage, "."]
    assert log[-2][0] == "_renameat2"


def test_short_writes_and_short_reads_are_continued(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:11]], at))
    publish(plan(False), fast_path / "out")
    assert (fast_path / "out").read_bytes() == b"new" * 3000 + b"!!"


def test_a_disk_that_cannot_reserve_is_written_all_the_same(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: fail(errno.EOPNOTSUPP)())
    publish(plan(True), fast_path / "out")
    assert check_files(fast_path / "out") == []


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct reads")
@pytest.mark.parametrize("refuses", ["open", "preadv"])
def test_a_disk_without_direct_reads_is_read_by_way_of_the_cache(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    direct: set[int] = set()
    refused = []
    open_, preadv = os.open, os.preadv

    def open_for(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        descriptor = open_(path, flags & ~os.O_DIRECT, *rest, **options)
        direct.discard(descriptor)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
            if refuses == "open":
                os.close(descriptor)
                refused.append("open")
                fail(errno.EINVAL)()
        return descriptor

    def read(descriptor: int, buffers: Any, offset: int) -> int:
        if refuses == "preadv" and descriptor in direct:
            refused.append("preadv")
            fail(errno.EINVAL)()
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", open_for)
    monkeypatch.setattr(os, "preadv", read)
    publish(plan(True), fast_path / "out")
    monkeypatch.undo()
    assert set(refused) == {refuses}
    assert check_files(fast_path / "out") == []


def test_a_file_of_any_length_is_read_back_from_a_real_disk(tmp_path: Path) -> None:
    for size in (0, 1, 4095, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 511):
        data = np.random.default_rng(size).bytes(size)
        out = tmp_path / f"of-{size}"
        done = publish(PlannedArtifact("demo", False, (blob("model.bin", data),), ()), out)
        assert out.read_bytes() == data
        assert done.manifest["files"][out.name]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("read", [0, 1, 4, 6])
def test_a_disk_that_gives_back_other_bytes_is_caught(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    preadv, reads = os.preadv, iter(range(100))

    def lie(descriptor: int, buffers: Any, offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        if next(reads) == read:
            buffers[0][count // 2] ^= 1
        return count

    monkeypatch.setattr(os, "preadv", lie)
    with pytest.raises(WriteFailed, match="read back from the disk differs from what was written"):
        publish(plan(True), fast_path / "out")
    assert content(fast_path / "out") == {}


def test_a_file_that_lost_its_end_is_caught(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def lose(descriptor: int) -> None:
        real(descriptor)
        with suppress(OSError):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 1)

    monkeypatch.setattr(os, "fsync", lose)
    with pytest.raises(WriteFailed, match="read back from the disk differs"):
        publish(plan(True), fast_path / "out")
    assert content(fast_path / "out") == {}


def test_two_names_that_are_one_file_on_this_disk_are_refused(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **options: real(os.fspath(path).replace("README", "readme"), *rest, **options)
    )
    with pytest.raises(WriteFailed, match="File exists"):
        publish(folder_plan(blob("readme", b"1"), blob("README", b"2")), fast_path / "out")
    assert content(fast_path / "out") == {}


def test_a_foreign_file_that_appears_meanwhile_is_kept(fast_path: Path) -> None:
    for folder, name in ((True, "one"), (False, "two")):
        out = fast_path / name
        with pytest.raises(OutputExists, match="already exists"):
            publish(plan(folder), out, report=lambda out=out: out.write_text("mine") and {})
        assert out.read_text() == "mine"
    assert content(fast_path / "x") == {"one": b"mine", "two": b"mine"}


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("folder", [True, False])
def test_a_foreign_file_that_appears_in_the_last_instant_is_kept(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, atomic: bool
) -> None:
    real, out = renaming._renameat2, fast_path / "out"

    def late(*arguments: Any) -> bool:
        out.write_text("mine")
        return real(*arguments) if atomic else False

    monkeypatch.setattr(renaming, "_renameat2", late)
    with pytest.raises(OutputExists, match="appeared while it was being made"):
        publish(plan(folder), out)
    assert content(out) == {"out": b"mine"}


# The disk is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_plan_that_does_not_fit_is_refused_with_both_numbers(small_disk: Path) -> None:
    with pytest.raises(NoSpace, match=r"out: needs 5\.33 MB, 4\.19 MB free$"):
        publish(megabytes(4), small_disk / "out")
    assert list(small_disk.iterdir()) == []
    publish(megabytes(2), small_disk / "out")


@pytest.mark.parametrize("reserve", [True, False])
def test_a_disk_that_fills_up_meanwhile_is_reported(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, reserve: bool
) -> None:
    free = os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    if not reserve:
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: fail(errno.EOPNOTSUPP)())
    (small_disk / "foreign").write_bytes(bytes(2 << 20))
    with pytest.raises(NoSpace, match=r"out: cannot (reserve 3\.15 MB|write x): No space left on device$"):
        publish(megabytes(3), small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["foreign"]


def test_a_report_that_does_not_fit_is_reported(small_disk: Path) -> None:
    with pytest.raises(NoSpace, match=r"No space left on device$"):
        publish(megabytes(2), small_disk / "out", report=lambda: {"text": "x" * (3 << 20)})
    assert list(small_disk.iterdir()) == []


def test_what_a_killed_run_left_counts_as_free(small_disk: Path) -> None:
    (small_disk / ".out.quantkit-part").mkdir()
    (small_disk / ".out.quantkit-part" / "x").write_bytes(bytes(3 << 20))
    publish(megabytes(2), small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_file_size_limit_is_one_error(fast_path: Path) -> None:
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); {IMPORTS}"
    program += f"publish(plan(True), pathlib.Path({str(fast_path / 'out')!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "WriteFailed" in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert content(fast_path / "out") == {}

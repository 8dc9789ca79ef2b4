"""Files on their way to being published: preallocated, written and hashed, read back and hashed again.

Three things happen at once, each in its own thread and each strictly in order: the caller produces buffers, the
writer writes and hashes them, the checker makes each window durable, and reads and hashes it past the page cache: what
the disk gives back. Hashing works outside the interpreter lock. The bytes do not depend on how the threads interleave.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from quantkit.errors import NoSpace, WriteFailed
from quantkit.files.digest import PIECE
from quantkit.files.planned_files import Buffer, PlannedFile, Unit

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

QUEUE_BYTES = 32 << 20
"""Produced bytes that may wait for the writer; the producer pauses above it."""
WINDOW_BYTES = 64 << 20
"""Bytes between two read-backs: bounds what the page cache owes the disk, so that the last fsync is short."""


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn an OSError of our own writing into `NoSpace` or `WriteFailed`; `what` says what was being done."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{what}: {error.strerror}", hint="free some space, or choose another disk") from error
        raise WriteFailed(f"{what}: {error.strerror}") from error


def allocate(path: Path, size: int) -> None:
    """Create a file that must not exist and reserve its blocks, so that a full disk shows before the work.

    The mode is 0666 less the umask. File systems that cannot reserve are let through: they will tell while writing.

    Raises:
        OSError: no space, or any other refusal.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if size and sys.platform == "linux":
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not know fsync of a folder
            raise
    finally:
        os.close(descriptor)


class StageWriter:
    """Writes planned files one after another and tells their digests; a context manager.

    Args:
        output: the name to publish, for messages.
        progress: called in the caller's thread with the number of bytes just written.
    """

    def __init__(self, output: Path, progress: Callable[[int], None]) -> None:
        self._output = output
        self._progress = progress
        self._writes = ThreadPoolExecutor(1, "quantkit-write")
        self._checks = ThreadPoolExecutor(1, "quantkit-check")
        self._pending: deque[tuple[Future[Any], int]] = deque()
        self._queued = 0
        self._file: _OpenFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writes.shutdown(wait=True, cancel_futures=True)
        self._checks.shutdown(wait=True, cancel_futures=True)
        if self._file is not None:
            self._file.close()

    def write(self, path: Path, planned: PlannedFile) -> Future[str]:
        """Produce and write every unit of `planned` into the allocated file `path`.

        Returns:
            Its SHA-256, once everything is on disk and was read back; the result raises as this method does.

        Raises:
            NoSpace, WriteFailed: the system refused, a unit has another size than planned, or the disk gave back
                other bytes. What a unit raises is passed on as it is.
        """
        self._submit(partial(self._open, path, planned), 0)
        for unit in planned.units:
            for view in _unit_bytes(unit, f"{self._output}: {planned.name}"):
                self._submit(partial(self._append, view), view.nbytes)
        return self._submit(self._seal, 0)

    def drain(self) -> None:
        """Wait until everything produced so far is written; raises as `write` does."""
        while self._pending:
            self._settle()

    def _submit(self, step: Callable[[], T], size: int) -> Future[T]:
        future = self._writes.submit(step)
        self._pending.append((future, size))
        self._queued += size
        while self._pending and (self._queued > QUEUE_BYTES or self._pending[0][0].done()):
            self._settle()
        return future

    def _settle(self) -> None:
        step, size = self._pending.popleft()
        step.result()
        self._queued -= size
        if size:
            self._progress(size)

    def _open(self, path: Path, planned: PlannedFile) -> None:
        with refusals(f"{self._output}: cannot write {planned.name}"):
            self._file = _OpenFile(path, planned, self._checks)

    def _append(self, view: memoryview) -> None:
        assert self._file is not None
        with refusals(f"{self._output}: cannot write {self._file.planned.name}"):
            self._file.append(view)

    def _seal(self) -> str:
        assert self._file is not None
        file, self._file = self._file, None
        with refusals(f"{self._output}: cannot write {file.planned.name}"):
            try:
                written, found = file.seal()
            finally:
                file.close()
        if written != found:
            raise WriteFailed(
                f"{self._output}: {file.planned.name} read back from the disk differs from what was written",
                hint="check the disk and its connection; nothing was published",
            )
        return written


def _unit_bytes(unit: Unit, where: str) -> Iterator[memoryview]:
    """The unit's buffers as flat bytes, checked to be exactly `unit.size` of them."""
    count = 0
    for buffer in unit.produce():
        view = _flat(buffer)
        count += view.nbytes
        if count > unit.size:
            break
        if view.nbytes:
            yield view
    if count != unit.size:
        excess = "at least " if count > unit.size else ""
        raise WriteFailed(f"{where}: internal error: unit '{unit.name}' gave {excess}{count} bytes, not {unit.size}")


def _flat(buffer: Buffer) -> memoryview:
    if isinstance(buffer, np.ndarray):
        # By way of uint8: the buffer protocol does not know bfloat16.
        return buffer.reshape(-1).view(np.uint8).data
    view = memoryview(buffer)
    return view if view.nbytes == 0 else view.cast("B")


class _OpenFile:
    """One file being written from its start to its end. Methods run in the writer's thread."""

    def __init__(self, path: Path, planned: PlannedFile, checks: ThreadPoolExecutor) -> None:
        self.planned = planned
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._checks = checks
        self._check: Future[None] | None = None
        self._size = 0
        self._checked = 0
        self._written = hashlib.sha256()
        self._found = hashlib.sha256()

    def append(self, view: memoryview) -> None:
        for start in range(0, view.nbytes, PIECE):
            piece = view[start : start + PIECE]
            self._written.update(piece)
            while piece:
                count = os.pwrite(self._descriptor, piece, self._size)
                self._size += count
                piece = piece[count:]
        if self._size - self._checked >= WINDOW_BYTES:
            self._await_check()
            whole = self._size // PIECE * PIECE
            self._check = self._checks.submit(self._read_back, self._checked, whole, os.fdatasync)
            self._checked = whole

    def seal(self) -> tuple[str, str]:
        """Make the file durable; return the digests of what was written and of what the disk holds."""
        self._await_check()
        self._read_back(self._checked, self._size, os.fsync)
        return self._written.hexdigest(), self._found.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)

    def _await_check(self) -> None:
        if self._check is not None:
            self._check.result()

    def _read_back(self, start: int, stop: int, sync: Callable[[int], None]) -> None:
        # After a failed sync the pages count as clean, so a second one would "succeed": the file is given up instead.
        sync(self._descriptor)
        if sys.platform == "linux":
            os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
        buffer = memoryview(mmap.mmap(-1, PIECE))  # on a page boundary, as reads past the cache want it
        reader = _open_past_cache(self._path)
        try:
            while start < stop:
                count = min(self._read(reader, buffer, start), stop - start)
                if count == 0:
                    break  # shorter than what was written: the digests will differ
                self._found.update(buffer[:count])
                start += count
        finally:
            os.close(reader)

    def _read(self, reader: int, buffer: memoryview, start: int) -> int:
        try:
            return os.preadv(reader, [buffer], start)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place that this disk cannot read directly, as after a short read
                raise
            return os.preadv(self._descriptor, [buffer], start)


def _open_past_cache(path: Path) -> int:
    """Open for direct reads, which halve the cost of reading back; plainly where the file system has none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)

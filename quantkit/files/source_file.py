"""Reading an input file without trusting it: regular files only, never blocking, and noticing when one changes."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from quantkit.errors import (
    IncompleteCheckpoint,
    MalformedFile,
    QuantkitError,
    ReadFailed,
    SourceChanged,
    UnsafePath,
)

CLOCK_TICK = 0.01
"""Seconds by which the stamps of two writes differ, at least, where the system's clock is the slowest (100 Hz)."""

_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)  # links were resolved before; one that appears now was put there to fool us
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for its writer
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as it was when first looked at. It holds no descriptor: every read opens the file anew.

    path: where the user sees it (used in messages). location: the same with every link resolved. ctime_ns: when
    anything of it changed last, which no program can set back, as it can `mtime_ns`.
    """

    path: Path
    location: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def open(cls, path: Path, location: Path | None = None) -> SourceFile:
        """Look at the file `path`, following links; `location` is where they lead, if the caller has looked.

        A file that was written just now is looked at again after a tick of the clock, so that a write that comes next
        gets another stamp.

        Raises:
            IncompleteCheckpoint: it does not exist.
            UnsafePath: its links form a loop.
            MalformedFile: it is a folder, FIFO, socket or device.
            ReadFailed: the operating system does not let us look.
        """
        location = location or resolved(path)
        try:
            state = location.lstat()
            if 0 <= time.time() - state.st_ctime < CLOCK_TICK:
                time.sleep(CLOCK_TICK)
                state = location.lstat()
        except OSError as error:
            raise _refused(path, error) from error
        if not stat.S_ISREG(state.st_mode):
            raise MalformedFile(f"{path} is not a regular file")
        return cls(path, location, *_identity(state))

    def read(self, offset: int, size: int) -> np.ndarray:
        """Bytes [offset, offset + size) as a fresh uint8 array; raises `SourceChanged` or `ReadFailed`."""
        data = np.empty(size, np.uint8)
        view = data.data
        try:
            with FileIO(self.location, opener=_open) as file:
                self._check(file)
                file.seek(offset)
                while view:
                    count = file.readinto(view)
                    if not count:
                        raise SourceChanged(f"{self.path} became shorter while it was read")
                    view = view[count:]
                self._check(file)
        except OSError as error:
            if error.errno == errno.ELOOP:  # links were resolved, so this one is new
                raise _changed(self.path) from error
            raise _refused(self.path, error) from error
        return data

    def read_all(self, limit: int) -> bytes:
        """The whole file, which may hold at most `limit` bytes; raises `MalformedFile` when it holds more."""
        if self.size > limit:
            raise MalformedFile(f"{self.path} has {self.size:,} bytes; the limit for such a file is {limit:,}")
        return self.read(0, self.size).tobytes()

    def _check(self, file: FileIO) -> None:
        known = (self.size, self.mtime_ns, self.ctime_ns, self.inode, self.device)
        if _identity(os.fstat(file.fileno())) != known:
            raise _changed(self.path)


def check_unchanged(sources: Iterable[SourceFile]) -> None:
    """Raise `SourceChanged` for a file that is not, or is no longer, what it was when it was looked at."""
    for source in sources:
        try:
            same = SourceFile.open(source.path) == source
        except QuantkitError as error:
            raise SourceChanged(f"{source.path} changed while it was read: {error}") from error
        if not same:
            raise _changed(source.path)


def resolved(path: Path) -> Path:
    """`path` with every link followed; raises `IncompleteCheckpoint`, `UnsafePath` (a loop) or `ReadFailed`."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise _refused(path, error) from error


def _open(name: str, _flags: int) -> int:
    return os.open(name, _OPEN_FLAGS)


def _refused(path: Path, error: OSError) -> IncompleteCheckpoint | UnsafePath | ReadFailed:
    if isinstance(error, FileNotFoundError):
        return IncompleteCheckpoint(f"{path} is missing")
    if error.errno == errno.ELOOP:
        return UnsafePath(f"{path} is a link that leads to itself")
    return ReadFailed(f"{path} cannot be read: {error.strerror}")


def _changed(path: Path) -> SourceChanged:
    return SourceChanged(f"{path} changed while it was read", hint="run again when nothing writes to it")


def _identity(state: os.stat_result) -> tuple[int, int, int, int, int]:
    """Size, both stamps, inode and device: of two states of a file that differ in content, one of them differs."""
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)

"""One process at a time publishes under one name."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from quantkit.artifacts.stage_writer import refusals
from quantkit.errors import OutputExists

if TYPE_CHECKING:
    from typing_extensions import Self


class Lock:
    """The exclusive right to publish under one name; a context manager.

    The kernel drops the lock when its holder dies, so a file that a killed process left behind is simply taken over.

    Raises:
        OutputExists: on entering, when a living process holds it; names its process id.
        NoSpace, WriteFailed: the file cannot be created or locked.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self._path = path
        self._output = output
        self._descriptor = -1

    def __enter__(self) -> Self:
        while self._descriptor < 0:
            with refusals(f"{self._output}: cannot write beside it"):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                try:
                    self._take(descriptor)
                finally:
                    if self._descriptor < 0:
                        os.close(descriptor)
        return self

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise OutputExists(
                f"{self._output}: another quantkit (pid {holder}) is writing it",
                hint="wait until it has ended, or choose another name",
            ) from None
        except OSError:
            self._path.unlink()  # this file system has no locks, so nobody else holds it either
            raise
        # The holder before us may have removed this very file between our open and our lock: then try anew.
        if self._is_current(descriptor):
            with suppress(OSError):  # only the message above needs it; the disk may be full
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self._descriptor = descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Best effort: what stays behind is an unlocked dotted file, which the next run takes over and removes.
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

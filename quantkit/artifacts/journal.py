"""Finished steps of a long run, kept in a folder beside its output, so that a killed run can go on where it was.

    .NAME.quantkit-work    a file per step: SHA-256 in hexadecimal, a newline, the step's bytes
    .NAME.quantkit-run     held while a process works on NAME

`key` in that folder names the run, and what it was to do: work of another run is thrown away only where that is wanted.
Once the output is about to be published, `seal` writes into the folder which output that is: `forget` tells by it that
a run was killed after publishing, and its steps are of no use any more.

A digest covers a step's name and bytes and the digest of the step before it; the first follows from the run's key,
which says all that the steps depend on. What another run left, what is damaged, and what follows from other bytes
than now lie before it is therefore not recalled: that step is done again, and its file replaced. A step is durable
before the next one begins.

A step that takes long may save its state on the way, under the same rules; each state replaces the one before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from quantkit.artifacts.file_pair import MANIFEST_NAME
from quantkit.artifacts.output_lock import Lock
from quantkit.artifacts.output_paths import Destination, size_text
from quantkit.artifacts.stage_writer import refusals, sync_folder
from quantkit.errors import Interrupted, NoSpace, OutputExists, QuantkitError, ReadFailed, SourceChanged, WriteFailed

if TYPE_CHECKING:
    from typing_extensions import Self

HEAD_BYTES = 65
KEY, SEAL = "key", "published"
PART = ".part"
"""Ends the name of a file that is being written."""
CONTINUE = "run the same command again to continue"
PASSING = (NoSpace, OutputExists, ReadFailed, SourceChanged, WriteFailed)
"""Errors after which the same command may go through; any other comes from the input and would come again."""


class Journal:
    """The steps of one run, in order: each is recalled, or done and kept. A context manager.

    Leaving it removes the folder when all went well, or when nothing is worth keeping; otherwise the error's hint says
    how to go on.

    Args:
        destination: the output that the run is to make.
        key: a digest of everything that decides the bytes of the steps.
        described: what the run is to do, in a few words.
        discard: whether what another run has finished may be thrown away.

    Attributes:
        found: how many steps of this run were there when it was entered.

    Raises:
        OutputExists: on entering, when a living process works on the same output, or when another run has finished
            steps for it and they are not to be discarded.
        NoSpace, WriteFailed: the folder cannot be written, or belongs to another user.
        Interrupted: on leaving, in place of KeyboardInterrupt, when steps are kept.
    """

    def __init__(self, destination: Destination, key: bytes, *, described: str = "a run", discard: bool = True) -> None:
        self._shown = destination.shown
        self._head = f"{key.hex()}\n{described}\n".encode()
        self._discard = discard
        self.found = 0
        self._refused = False
        self._folder = destination.work
        self._lock = Lock(destination.run, destination.shown)
        self._last = key
        self._steps = 0
        self._recalled = 0
        self._states = 0

    def __enter__(self) -> Self:
        self._lock.__enter__()
        try:
            with refusals(f"{self._shown}: cannot keep finished work beside it"):
                self._folder.mkdir(0o700, exist_ok=True)
                state = self._folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                raise WriteFailed(f"{self._folder} is not a folder of yours", hint="remove it")
            with refusals(f"{self._shown}: cannot keep finished work beside it"):
                self._take_over()
        except BaseException as error:
            self._lock.__exit__(type(error), error, None)
            raise
        return self

    def _take_over(self) -> None:
        """Make what lies in the folder this run's, or refuse to; raises OSError."""
        (self._folder / SEAL).unlink(missing_ok=True)  # of another run, which published
        kept = self._steps_kept()
        key = self._folder / KEY
        before = key.read_bytes() if key.exists() else b""
        if before[:HEAD_BYTES] == self._head[:HEAD_BYTES]:
            self.found = len(kept)
            return
        if kept and not self._discard:
            whose = before[HEAD_BYTES:].decode(errors="replace").strip() or "another run"
            raise self._other(
                whose, kept, "this one cannot go on with them: options, model or version of quantkit are others"
            )
        for path in kept:
            path.unlink()
        key.write_bytes(self._head)

    def _steps_kept(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.name != KEY and path.suffix != PART]

    def _other(self, whose: str, kept: Sequence[Path], why: str) -> OutputExists:
        size = size_text(sum(path.stat().st_size for path in kept))
        return OutputExists(
            f"{self._shown}: {whose} was stopped and has left {len(kept)} finished steps, {size}; {why}",
            hint="give that run's command again to continue it, or --overwrite to throw its work away",
        )

    @property
    def recalled(self) -> int:
        """How many steps were not done again."""
        return self._recalled

    def recall(self, name: str) -> memoryview | None:
        """The bytes of the next step, if it was kept by a run with the same key and the same steps before it."""
        found = self._read(name)
        if found is None:
            return None
        self._last, body = found
        self._steps += 1
        self._recalled += 1
        return body

    def keep(self, name: str, data: bytes) -> None:
        """Store the bytes of the next step.

        Raises:
            OutputExists: they were other bytes before, so what follows from these would be lost.
            NoSpace, WriteFailed: the system refuses.
        """
        before = self._read(name) if self.found and not self._discard else None
        if before is not None and before[1] != data:
            self._refused = True
            raise self._other("a run", self._steps_kept(), f"the {name} that it began with were others")
        self._last = self._write(name, [data])
        self._steps += 1

    def saved(self, name: str) -> memoryview | None:
        """The state of the next step that was saved last, if by a run with the same key and steps before it."""
        found = self._read(name)
        self._states += found is not None
        return found[1] if found is not None else None

    def save(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Store the state of the next step, which is not finished; raises `NoSpace` or `WriteFailed`."""
        self._write(name, parts)
        self._states += 1

    def _read(self, name: str) -> tuple[bytes, memoryview] | None:
        """Digest and bytes of a file that follows from the steps so far."""
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        body = memoryview(data)[HEAD_BYTES:]
        digest = self._digest(name, [body])
        return (digest, body) if data[:HEAD_BYTES] == _head(digest) else None

    def _write(self, name: str, parts: Sequence[bytes | memoryview]) -> bytes:
        digest = self._digest(name, parts)
        with refusals(f"{self._shown}: cannot keep finished work beside it"):
            part = self._folder / f"{name}{PART}"
            with part.open("wb") as file:
                file.write(_head(digest))
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._folder / name)
            sync_folder(self._folder)
        return digest

    def _digest(self, name: str, parts: Sequence[bytes | memoryview]) -> bytes:
        sha256 = hashlib.sha256(self._last + hashlib.sha256(name.encode()).digest())
        for part in parts:
            sha256.update(part)
        return sha256.digest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worth = self.found > 0 or (self._steps + self._states > 0 and error is not None and _is_passing(error))
        kept = error is not None and worth
        if not kept:
            with suppress(OSError):
                _remove(self._folder)
        with suppress(OSError):
            self._lock.__exit__(kind, error, trace)
        if kept and isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted; nothing was published", hint=CONTINUE) from error
        if kept and isinstance(error, QuantkitError) and not self._refused:
            error.hint = f"{error.hint}; then {CONTINUE}" if error.hint else CONTINUE


def seal(destination: Destination, manifest: bytes) -> None:
    """Note in the folder of the steps, if there is one, which manifest the output of this run has; raises OSError."""
    if destination.work.is_dir():
        (destination.work / SEAL).write_bytes(hashlib.sha256(manifest).digest())


def forget(destination: Destination) -> None:
    """Remove the steps of a run that has published what lies at the output now; raises OSError."""
    manifest = destination.path / MANIFEST_NAME if destination.folder else destination.sidecar
    with suppress(OSError):
        destination.work.rmdir()  # where only the folder was left to be removed
    try:
        sealed = (destination.work / SEAL).read_bytes()
        published = hashlib.sha256(manifest.read_bytes()).digest()
    except OSError:
        return
    if sealed == published:
        _remove(destination.work)


def _remove(folder: Path) -> None:
    """Remove the steps, and the seal last, by which a killed removal is recognised; raises OSError."""
    for path in folder.iterdir():
        if path.name != SEAL:
            path.unlink()
    shutil.rmtree(folder)


def _head(digest: bytes) -> bytes:
    return digest.hex().encode() + b"\n"


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, PASSING) or not isinstance(error, QuantkitError)

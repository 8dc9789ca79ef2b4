"""The only writer of quantkit: what lies under a final name is a whole, checked artifact, or was there before.

The protocol, in order: refuse what can be refused before any work (`preflight`); lock the name; stage every file
beside the target, preallocated; write, fsync, read back and hash; write the manifest; fsync; rename; fsync the parent.
A failure removes the stage. A killed process leaves only dotted names, which the next run for that name cleans up:

    .NAME.quantkit-lock   held while a process publishes NAME
    .NAME.quantkit-part   the stage: a folder with the final files, also when the artifact is a single file
    .NAME.quantkit-old    a replaced folder, where the file system cannot exchange two names in one step

A single file and its manifest are two names, and still one commit: `quantkit.artifacts.file_pair`. What killed runs
left for other names is told with its size, see `quantkit.artifacts.leftovers`.

Files are written from start to end in planned order, unit by unit. The stage is not resumed: what takes long to
compute is kept by `quantkit.artifacts.journal`, and written anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from quantkit.artifacts.atomic_rename import exchange, move_new
from quantkit.artifacts.current_folder import fill, is_current, take_out
from quantkit.artifacts.file_pair import MANIFEST_NAME, commit, settle
from quantkit.artifacts.journal import forget, seal
from quantkit.artifacts.leftovers import leftovers
from quantkit.artifacts.manifest import check_files, describe, encoded, is_bare, read_manifest
from quantkit.artifacts.output_lock import Lock
from quantkit.artifacts.output_paths import Destination, check_apart, check_vacant, preflight, resolve, size_text
from quantkit.artifacts.stage_writer import StageWriter, allocate, refusals, sync_folder
from quantkit.errors import OutputExists
from quantkit.files.digest import source_digest
from quantkit.files.planned_files import PlannedArtifact, blob
from quantkit.files.source_file import SourceFile, check_unchanged
from quantkit.progress import Progress, unwatched

__all__ = ["Published", "check_files", "clean_up", "preflight", "publish", "read_manifest", "source_digest"]


CLEANING = "cannot clean up after a run that was killed"


@dataclass(frozen=True, slots=True)
class Published:
    """A finished artifact.

    path: where it lies. size: bytes of its files, the manifest aside. manifest: as written. leftovers: a line for
    each folder beside it that other runs left when they were killed. resumed: how many steps of a run that was stopped
    before were not done again.
    """

    path: Path
    size: int
    manifest: Mapping[str, Any]
    leftovers: tuple[str, ...] = ()
    resumed: int = 0


def publish(
    planned: PlannedArtifact,
    out: Path,
    *,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[], Mapping[str, Any]] | None = None,
) -> Published:
    """Turn a plan into files under the name `out`, completely or not at all.

    Args:
        planned: what to write. Units are produced once, in file order, in the caller's thread. A buffer must stay
            unchanged after it was yielded, because other threads still write and hash it.
        out: name of the folder or file to make; its parent must exist.
        inputs: the weight files that `planned` reads. They are hashed into the manifest while units are produced, and
            must not change meanwhile.
        overwrite: replace what is there, if quantkit wrote it. It stays whole until the new one is.
        progress: told of bytes written, `planned.size` in all; in the caller's thread.
        report: called after the last unit; JSON values for the manifest.

    Raises:
        UnsafePath, OutputExists, WriteFailed, NoSpace: see `preflight`; also when another process is publishing `out`.
        NoSpace, WriteFailed: the system refused something later on, the disk gave back other bytes than were written,
            or a unit has another size than planned.
        SourceChanged: an input was changed meanwhile. What else `source_digest` raises, for a bad input.
        What a unit, `progress` or `report` raises, and KeyboardInterrupt, pass through once the stage is removed.
    """
    sources = [SourceFile.open(path) for path in inputs]
    destination = resolve(planned, out)
    check_apart(destination, inputs)
    if not destination.has_leftovers():
        preflight(planned, out, inputs=inputs, overwrite=overwrite)
    with Lock(destination.lock, out):
        try:
            with refusals(f"{out}: {CLEANING}"):
                _recover(destination)
            # Again, or for the first time: leftovers took space, and before the lock another run may have finished.
            preflight(planned, out, inputs=inputs, overwrite=overwrite)
            manifest = _write_stage(planned, destination, sources=sources, progress=progress, report=report)
            check_vacant(destination, overwrite)
            with refusals(f"{out}: cannot be published"):
                seal(destination, encoded(manifest))
                _commit(destination, planned)
            with refusals(f"{out}: is complete, but may not survive a power failure yet"):
                sync_folder(destination.path.parent)
            with suppress(OSError):  # all that can be left is what was replaced; the next run removes it
                _recover(destination)
        except BaseException:
            with suppress(OSError):
                _recover(destination)
            raise
    return Published(out, planned.size, manifest, leftovers(destination.path.parent))


def clean_up(planned: PlannedArtifact, out: Path) -> None:
    """Remove what killed runs for this very name left, except finished work that the next run goes on with.

    Raises:
        OutputExists: a living process works on it.
        NoSpace, WriteFailed: it cannot be removed, or `out` is not a usable name.
    """
    destination = resolve(planned, out)
    if not any(map(os.path.lexists, destination.hidden())):
        return
    with Lock(destination.run, out), Lock(destination.lock, out), refusals(f"{out}: {CLEANING}"):
        _recover(destination)
        forget(destination)


def _write_stage(
    planned: PlannedArtifact,
    destination: Destination,
    *,
    sources: Sequence[SourceFile],
    progress: Progress | None,
    report: Callable[[], Mapping[str, Any]] | None,
) -> Mapping[str, Any]:
    """Fill the stage with every file and the manifest, durable and checked; return the manifest."""
    with refusals(f"{destination.shown}: cannot reserve {size_text(planned.size)}"):
        destination.stage.mkdir()
        for file in planned.files:
            allocate(destination.stage / file.name, file.size)
    cancelled = Event()
    hashing = ThreadPoolExecutor(1, "quantkit-source")
    try:
        hashed = hashing.submit(source_digest, [source.path for source in sources], cancelled)
        counted = _Counted(progress or unwatched, f"writing {destination.path.name}", planned.size)
        with StageWriter(destination.shown, counted.add) as writer:
            digests = {file.name: writer.write(destination.stage / file.name, file) for file in planned.files}
            reported = report() if report is not None else {}
            writer.drain()
        counted.tell("checking what was written and read")
        wait([hashed])
        check_unchanged(sources)  # first, because hashing stumbles over a change, too, and says less
        files = {
            _final_name(destination, file.name): {"size": file.size, "sha256": digests[file.name].result()}
            for file in planned.files
        }
        manifest = {**describe(planned), "source": hashed.result(), "files": files, "report": reported}
        manifest |= {"figures": planned.figures(), **planned.further()}
        if planned.measure is not None:
            written = destination.stage if planned.folder else destination.stage / planned.files[0].name
            manifest["weights"] = planned.measure(written)
    finally:
        cancelled.set()
        hashing.shutdown()
    data = encoded(manifest)
    with refusals(f"{destination.shown}: cannot write {MANIFEST_NAME}"):
        allocate(destination.stage / MANIFEST_NAME, len(data))
    with StageWriter(destination.shown, lambda count: None) as writer:
        writer.write(destination.stage / MANIFEST_NAME, blob(MANIFEST_NAME, data))
        writer.drain()
    with refusals(f"{destination.shown}: cannot write"):
        sync_folder(destination.stage)
    return json.loads(data)  # type: ignore[no-any-return]


def _final_name(destination: Destination, planned: str) -> str:
    """What a file is called in the end: a single one by the user; JSON cannot hold every name that a disk can."""
    name = destination.path.name
    return planned if destination.folder or not is_bare(name) else name


class _Counted:
    """Adds up bytes written and tells `progress`."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        self.tell(self._what)

    def tell(self, what: str) -> None:
        self._progress(what, self._done, self._total)


def _commit(destination: Destination, planned: PlannedArtifact) -> None:
    """Give the staged files their final names. A kill at any instant leaves the old, the new, or the old set aside."""
    replacing = os.path.lexists(destination.path)
    try:
        if not destination.folder:
            commit(destination.stage / planned.files[0].name, destination.path, destination.sidecar)
        elif not replacing:
            move_new(destination.stage, destination.path)
        elif is_current(destination.path):
            fill(destination.stage, destination.path)
        elif not exchange(destination.stage, destination.path):
            destination.path.rename(destination.old)
            destination.stage.rename(destination.path)
    except FileExistsError:
        raise OutputExists(
            f"{destination.shown} appeared while it was being made", hint="choose another name"
        ) from None


def _recover(destination: Destination) -> None:
    """Bring back what was set aside but not replaced, and remove what is unfinished; raises OSError."""
    if os.path.lexists(destination.old):
        if os.path.lexists(destination.path):
            _remove(destination.old)
        else:
            destination.old.rename(destination.path)
    if destination.folder:
        take_out(destination.stage, destination.path)
    settle(destination.stage, destination.path, destination.sidecar)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

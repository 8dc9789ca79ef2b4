"""Where an artifact goes: every name that publishing touches, and all that can be refused before any work."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.artifacts.current_folder import is_current
from quantkit.artifacts.file_pair import MANIFEST_NAME
from quantkit.artifacts.hidden_names import LOCK, OLD, RUN, STAGE, WORK, beside
from quantkit.artifacts.manifest import SIDECAR_SUFFIX, describe, encoded, is_bare, read_manifest
from quantkit.artifacts.stage_writer import refusals
from quantkit.errors import BadOption, NoSpace, OutputExists, ReadFailed, UnsafePath, WriteFailed, and_more
from quantkit.files.planned_files import PlannedArtifact

MANIFEST_ALLOWANCE = 1 << 20
"""Bytes kept free for the digests, the report and the folder itself, beyond what is known of the manifest."""
SPACE_MARGIN = 0.02
"""Share of the planned size kept free beyond it: the file system's own blocks."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Every name that publishing may touch; all are in one folder, so renames never cross file systems.

    shown: the output as the user wrote it, for messages. path: the same, absolute, links in its folder resolved.
    """

    shown: Path
    path: Path
    folder: bool

    @property
    def lock(self) -> Path:
        """Held while a process publishes this output."""
        return beside(self.path, LOCK)

    @property
    def stage(self) -> Path:
        """A folder with the files on their way."""
        return beside(self.path, STAGE)

    @property
    def old(self) -> Path:
        """A replaced folder, set aside."""
        return beside(self.path, OLD)

    @property
    def run(self) -> Path:
        """Held while a process works on this output, from before publishing."""
        return beside(self.path, RUN)

    @property
    def work(self) -> Path:
        """A folder with finished steps of a run, see `quantkit.artifacts.journal`."""
        return beside(self.path, WORK)

    @property
    def sidecar(self) -> Path:
        """The manifest of a single file."""
        return self.path.with_name(self.path.name + SIDECAR_SUFFIX)

    def names(self) -> tuple[Path, ...]:
        """All that may be replaced or removed."""
        return (self.path, self.sidecar, *self.hidden())

    def hidden(self) -> tuple[Path, ...]:
        """All that is there only while a run is at work on this output, or was killed."""
        return (self.stage, self.old, self.lock, self.run, self.work)

    def has_leftovers(self) -> bool:
        """Whether another run is at work on this output, or was killed."""
        return any(os.path.lexists(path) for path in (self.lock, self.stage, self.old))


def preflight(
    planned: PlannedArtifact, out: Path, *, inputs: Sequence[Path] = (), overwrite: bool = False, journal_size: int = 0
) -> None:
    """Refuse what can be refused before any work; touches nothing. `publish` begins with it.

    journal_size: bytes that `quantkit.artifacts.journal` will keep beside the output meanwhile.

    Raises:
        BadOption: the name of `out` has none of the words that an engine looks for.
        UnsafePath: a planned file is not a bare file name.
        OutputExists: `out` is taken, is or holds an input, or is something that `overwrite` must not replace.
        WriteFailed: the parent is missing, not a folder or not writable; the name is too long.
        NoSpace: the disk holds less than the plan, the manifest and 2 %, and the journal.
    """
    destination = resolve(planned, out)
    _check_keywords(planned, destination)
    _check_names(planned, out)
    check_apart(destination, inputs)
    _check_parent(destination)
    check_vacant(destination, overwrite)
    _check_space(destination, planned, journal_size)


def resolve(planned: PlannedArtifact, out: Path) -> Destination:
    """The names that publishing `planned` as `out` will use; raises `WriteFailed` or `OutputExists` for no name."""
    try:
        named = out if out.name not in ("", "..") else out.resolve()
        path = named.parent.resolve() / named.name
    except (OSError, RuntimeError) as error:  # a loop of links
        raise WriteFailed(f"{out}: is not a usable path: {error}") from error
    if not path.name:
        raise OutputExists(f"{out} cannot be replaced", hint="give the name of a new file or folder")
    return Destination(out, path, planned.folder)


def _check_keywords(planned: PlannedArtifact, destination: Destination) -> None:
    name, words = destination.path.name, planned.name_keywords
    if words and not any(word in name.lower() for word in words):
        raise BadOption(
            f"{destination.shown}: the engine knows a {planned.format} artifact by its name, which must contain "
            f"{', '.join(words[:-1])} or {words[-1]}",
            hint=f"call it {name}-{words[0]}",
        )


def _check_names(planned: PlannedArtifact, out: Path) -> None:
    names = [file.name for file in planned.files]
    for name in names:
        if not is_bare(name):
            raise UnsafePath(f"{out}: {name[:80]!r} is not a bare file name")
    taken = {name for name in names if names.count(name) > 1 or name == MANIFEST_NAME}
    if taken:
        raise UnsafePath(f"{out}: the file name {min(taken)!r} is needed twice")
    if not planned.folder and len(names) != 1:
        raise WriteFailed(
            f"{out}: internal error: {planned.format} plans {len(names)} files for a single-file artifact"
        )


def check_apart(destination: Destination, inputs: Sequence[Path]) -> None:
    """Refuse to touch a name that is an input, or a folder that an input lies in, by device and inode."""
    for path in inputs:
        # Both the way that was given and the one behind links: replacing a folder of links would lose the links.
        ways = [_straight(path.absolute()), path.resolve()]
        holders = {_identity(step) for way in ways for step in (way, *way.parents)}
        for name in destination.names():
            if os.path.lexists(name) and _identity(name) in holders:
                raise OutputExists(f"{destination.shown} is, or holds, the input {path}", hint="choose another output")


def _straight(path: Path) -> Path:
    """A path without `..`, and with its links from the last one on: ../m does not lie in the current folder."""
    parts = path.parts
    if ".." not in parts:
        return path
    last = len(parts) - parts[::-1].index("..")
    return Path(*parts[:last]).resolve().joinpath(*parts[last:])


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, hash(path))  # no such thing: equal to nothing else
    return (found.st_dev, found.st_ino)


def _check_parent(destination: Destination) -> None:
    parent, shown = destination.path.parent, destination.shown.parent
    if not parent.is_dir():
        what = "is not a folder" if os.path.lexists(parent) else "does not exist"
        raise WriteFailed(f"{destination.shown}: {shown} {what}", hint="create the folder first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteFailed(f"{destination.shown}: no permission to write in {shown}")
    longest = max(len(os.fsencode(path.name)) for path in (destination.stage, destination.lock, destination.sidecar))
    limit = os.pathconf(parent, "PC_NAME_MAX")
    if longest > limit:
        spare = limit - (longest - len(os.fsencode(destination.path.name)))
        raise WriteFailed(f"{destination.shown}: the name is too long", hint=f"at most {spare} bytes here")


def check_vacant(destination: Destination, overwrite: bool) -> None:
    """Raise `OutputExists` when the name is taken, or with `overwrite` by what quantkit did not write.

    An empty folder is no obstacle to a folder.
    """
    try:
        mode = os.lstat(destination.path).st_mode
    except FileNotFoundError:
        return
    shown = destination.shown
    if destination.folder and stat.S_ISDIR(mode) and not any(destination.path.iterdir()):
        return
    if not overwrite:
        raise OutputExists(f"{shown} already exists", hint="choose another name, or replace it with --overwrite")
    if stat.S_ISLNK(mode):
        raise OutputExists(f"{shown} is a symbolic link", hint="give the name that it leads to")
    if not destination.folder:
        if not stat.S_ISREG(mode):
            raise OutputExists(f"{shown} is not a file and cannot be replaced by one", hint="choose another name")
    elif not stat.S_ISDIR(mode):
        raise OutputExists(f"{shown} is not a folder and cannot be replaced by one", hint="choose another name")
    elif not os.access(destination.path, os.R_OK | os.W_OK | os.X_OK):
        raise WriteFailed(f"{shown}: no permission to replace it")
    elif is_current(destination.path):
        raise OutputExists(f"{shown} is the current folder, which is not replaced", hint="cd elsewhere, and name it")
    _check_written_by_us(destination)


def _check_written_by_us(destination: Destination) -> None:
    """Raise `OutputExists` for what has no manifest, and for a folder with more in it than its manifest lists."""
    shown = destination.shown
    with refusals(f"{shown}: cannot tell whether it may be replaced"):
        try:
            manifest = read_manifest(destination.path)
        except ReadFailed as error:
            raise error.__context__ or error  # noqa: B904 - what the system said
    if manifest is None:
        raise OutputExists(
            f"{shown} was not written by quantkit (it has no {MANIFEST_NAME}); it is not replaced",
            hint="choose another name, or remove it yourself",
        )
    if destination.folder:
        own = {*manifest["files"], MANIFEST_NAME}
        others = sorted(entry.name for entry in destination.path.iterdir() if entry.name not in own)
        if others:
            raise OutputExists(
                f"{shown} holds {others[0][:80]!r}{and_more(others)}, not written by quantkit; it is not replaced",
                hint="move that away, or choose another name",
            )


def _check_space(destination: Destination, planned: PlannedArtifact, journal_size: int) -> None:
    needed = planned.size + len(encoded(describe(planned))) + MANIFEST_ALLOWANCE
    needed += int(planned.size * SPACE_MARGIN) + journal_size
    with refusals(f"{destination.shown}: cannot tell the free space"):
        disk = os.statvfs(destination.path.parent)
    free = disk.f_bavail * disk.f_frsize
    if journal_size:  # a run that goes on reuses what a killed one left
        free += _bytes_below(destination.stage) + _bytes_below(destination.work)
    if disk.f_blocks and free < needed:  # some network file systems report zero blocks: unknown
        wanted, there = size_text(needed), size_text(free)
        if wanted == there:
            wanted, there = f"{needed} bytes", f"{free} bytes"
        raise NoSpace(
            f"{destination.shown}: needs {wanted}, {there} free",
            hint=f"free {size_text(needed - free)} or choose another disk; nothing was written",
        )


def _bytes_below(folder: Path) -> int:
    try:
        return sum(path.lstat().st_blocks * 512 for path in folder.iterdir())
    except OSError:
        return 0


def size_text(count: int) -> str:
    """Bytes in words, with decimal units as disks are sold: "4.31 GB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} bytes"

"""The gate that every file of a model's folder passes: where its links lead is known before it is opened.

A link may lead to another place of the folder. Out of it, it may lead only to where the Hub's cache keeps the files of
models, `models--OWNER--NAME/blobs/DIGEST`: a snapshot in a cache is made of such links, and older downloads into a
plain folder (`--local-dir`) are, too. Of a folder inside a cache, the blobs must be those of its own model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from quantkit.errors import IncompleteCheckpoint, IncompleteFile, UnsafePath
from quantkit.files.foreign_file import HEAD_BYTES, refuse_other_content
from quantkit.files.json_file import MAX_DEPTH, parse_json
from quantkit.files.source_file import SourceFile, resolved

BLOBS, SNAPSHOTS = "blobs", "snapshots"
CACHED_MODEL = "models--"
"""First part of the name of a model's folder in the Hub's cache."""
UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".download", ".opdownload", ".aria2", ".tmp")
"""What programs append to the name of a file until it is there."""
_CONTROL = (".aria2", ".st")
"""Of programs that give a file its name and size at once, beside which this lies until every byte is there."""
_DIGEST = re.compile(r"[0-9a-f]{32,128}")


def location_of(folder: Path, name: str) -> Path:
    """`folder / name`, a file or a folder, with every link resolved; nothing is opened.

    Raises:
        IncompleteCheckpoint: it is missing. UnsafePath: it leads out of the folder, or to itself.
        ReadFailed: the operating system does not let us look.
    """
    root, location = resolved(folder), resolved(folder / name)
    if location.is_relative_to(root) or _is_blob(location, root):
        return location
    raise UnsafePath(
        f"{folder / name} is a link to a file outside the model's folder", hint="copy the file into the folder"
    )


def open_member(folder: Path, name: str) -> SourceFile:
    """The file `name` of a model's folder, or of a folder in it, as it is now; it is opened when it is read.

    Raises:
        IncompleteFile: a download manager has not finished it. MalformedFile: it is no regular file.
        Others: see `location_of`.
    """
    refuse_unfinished(folder / name)
    try:
        location = location_of(folder, name)
    except IncompleteCheckpoint as error:
        begun = next((name + suffix for suffix in UNFINISHED if os.path.lexists(folder / (name + suffix))), None)
        if begun is None:
            raise
        raise IncompleteCheckpoint(f"{error}; {begun!r} is an unfinished download", hint="finish it") from None
    return SourceFile.open(folder / name, location)


def refuse_unfinished(path: Path) -> None:
    """Raise `IncompleteFile` for a file that has its name and size already, while a download manager fills it."""
    control = next((found for suffix in _CONTROL if os.path.lexists(found := path.with_name(path.name + suffix))), None)
    if control is not None:
        raise IncompleteFile(
            f"{path} is an unfinished download: {control.name!r} lies beside it", hint="finish the download"
        )


def read_member(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a small file of a model's folder.

    Raises:
        IncompleteFile, MalformedFile: it is something else (see `refuse_other_content`), or has more bytes than
            `limit`.
        Others: see `open_member` and `SourceFile.read`.
    """
    file = open_member(folder, name)
    data = file.read_all(limit)
    refuse_other_content(file, data[:HEAD_BYTES])
    return data


def read_member_json(folder: Path, name: str, *, limit: int, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object in a file of a model's folder; raises as `read_member` and `parse_json` do."""
    return parse_json(read_member(folder, name, limit), str(folder / name), depth=depth)


def _is_blob(location: Path, root: Path) -> bool:
    """Whether `location`, all links resolved, is a file of the Hub's cache that the folder `root` may link to."""
    blobs = location.parent
    if blobs.name != BLOBS:
        return False
    owners = [step.parent.parent for step in (root, *root.parents) if step.parent.name == SNAPSHOTS]
    if any((owner / BLOBS).is_dir() for owner in owners):
        return blobs.parent in owners
    return blobs.parent.name.startswith(CACHED_MODEL) and _DIGEST.fullmatch(location.name) is not None

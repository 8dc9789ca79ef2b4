"""An output that is the current folder: a shell stands in it, so it is filled, and never replaced by another folder.

The files move into it one by one, config.json near the end, so that a loader finds no model before, and the manifest
last, which is the move that counts. `take_out` takes every state before it back to the empty folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantkit.artifacts.atomic_rename import move_new
from quantkit.artifacts.file_pair import MANIFEST_NAME
from quantkit.artifacts.stage_writer import sync_folder

LAST = ("config.json", MANIFEST_NAME)
"""In this order."""


def is_current(path: Path) -> bool:
    """Whether `path` is the folder that this process was started in."""
    try:
        return path.samefile(Path.cwd())
    except OSError:
        return False


def fill(stage: Path, folder: Path) -> None:
    """Move all that is in `stage` into the empty `folder`; raises OSError, FileExistsError for a name that is taken."""
    names = sorted(path.name for path in stage.iterdir())
    for name in sorted(names, key=lambda name: LAST.index(name) if name in LAST else -1):
        move_new(stage / name, folder / name)
    sync_folder(folder)


def take_out(stage: Path, folder: Path) -> None:
    """Move back into `stage` what `fill` has moved, where it did not come to its end; raises OSError."""
    if not folder.is_dir() or (folder / MANIFEST_NAME).exists() or stage.is_symlink():
        return
    for name, size in _planned(stage / MANIFEST_NAME).items():
        moved = folder / name
        if not (stage / name).exists() and moved.is_file() and moved.stat().st_size == size:
            moved.rename(stage / name)


def _planned(manifest: Path) -> Mapping[str, int]:
    """The files that a staged manifest lists, with their sizes; none where it is not there, or not whole."""
    try:
        return {name: entry["size"] for name, entry in json.loads(manifest.read_bytes())["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}

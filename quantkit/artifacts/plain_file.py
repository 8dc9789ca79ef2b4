"""A single small file without a manifest, such as a page for people: written beside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quantkit.artifacts.atomic_rename import move_new
from quantkit.artifacts.hidden_names import STAGE, beside
from quantkit.artifacts.stage_writer import refusals
from quantkit.errors import OutputExists, WriteFailed

HEAD_BYTES = 4096
SOFTWARE = "quantkit"
"""Who drew a picture, by its own entry of that name."""


def check_free(out: Path, *, overwrite: bool, ours: Callable[[bytes], bool]) -> None:
    """Refuse a name before any work is done for it.

    ours: whether a file that begins with these bytes is one that may be replaced.

    Raises:
        OutputExists: the name is taken; with `overwrite`, by something else than such a file.
        WriteFailed: its folder is missing, or may not be written in.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        raise WriteFailed(f"{out}: {parent} is not a folder", hint="create the folder first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteFailed(f"{out}: no permission to write in {parent}")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputExists(f"{out} already exists", hint="choose another name, or replace it with --overwrite")
    if out.is_symlink() or not out.is_file() or not ours(_head(out)):
        raise OutputExists(f"{out} is nothing that this command wrote; it is not replaced", hint="choose another name")


def is_own_picture(head: bytes) -> bool:
    """Whether a file that begins so is a PNG of `SOFTWARE`."""
    return head.startswith(b"\x89PNG") and b"tEXtSoftware\0" + SOFTWARE.encode() in head


def write_plain(out: Path, data: bytes, *, overwrite: bool) -> None:
    """Give the name `out` to a file of these bytes, in one step.

    Raises:
        OutputExists: it appeared meanwhile. NoSpace, WriteFailed: the system refuses.
    """
    staged = beside(out.absolute(), STAGE)
    with refusals(f"{out}: cannot be written"):
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                staged.replace(out)
            else:
                move_new(staged, out)
        except FileExistsError:
            raise OutputExists(f"{out} appeared while it was being made", hint="choose another name") from None
        finally:
            with suppress(FileNotFoundError):
                staged.unlink()


def _head(path: Path) -> bytes:
    with refusals(f"{path}: cannot be looked at"), path.open("rb") as file:
        return file.read(HEAD_BYTES)

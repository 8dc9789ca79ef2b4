"""A single file and its manifest, published as one: what may lie on the disk meanwhile, and how that is settled.

No system renames two names at once, so the stage is the record of how far it came. It holds the new FILE, the new
quantkit.json, and what was replaced. The last rename, that of the manifest, is the one that counts:

    in the stage                                          at the final names
    FILE   quantkit.json                                  the old pair, or nothing
    FILE   quantkit.json   manifest.replaced              the old file
    FILE   quantkit.json   model.replaced                 the old file, which has two names (or, on disks without hard
                                                          links, for an instant no file)
           quantkit.json                                  the new file
                                                          the new pair
           manifest.withdrawn                             on the way back

`settle` takes every state before the last rename back to the old pair. Until then `pending_manifest` tells a reader
which manifest belongs to the file that it finds.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from quantkit.artifacts.atomic_rename import move_new
from quantkit.artifacts.hidden_names import STAGE, beside
from quantkit.errors import QuantkitError
from quantkit.files.digest import file_digest
from quantkit.files.source_file import SourceFile

MANIFEST_NAME = "quantkit.json"
REPLACED_MANIFEST = "manifest.replaced"
WITHDRAWN_MANIFEST = "manifest.withdrawn"
REPLACED_FILE = "model.replaced"
TAKEN_BACK = "model.taken-back"
RECORDS = {MANIFEST_NAME, REPLACED_MANIFEST, WITHDRAWN_MANIFEST, REPLACED_FILE}
"""Names in a stage that are not the new file."""


def commit(file: Path, path: Path, sidecar: Path) -> None:
    """Give `file`, which lies in the stage beside its manifest, the name `path`, and the manifest the name `sidecar`.

    Raises:
        FileExistsError: `path` appeared meanwhile, where nothing was to be replaced.
        OSError: any other refusal. `settle` takes back what was done, also after an interrupt.
    """
    stage = file.parent
    if os.path.lexists(sidecar):
        sidecar.rename(stage / REPLACED_MANIFEST)
    if os.path.lexists(path):
        try:
            os.link(path, stage / REPLACED_FILE)
        except OSError:  # a disk without hard links
            path.rename(stage / REPLACED_FILE)
        file.replace(path)
    else:
        move_new(file, path)
    (stage / MANIFEST_NAME).replace(sidecar)


def settle(stage: Path, path: Path, sidecar: Path) -> None:
    """Take back a commit that did not come to its last rename, and remove the stage; raises OSError.

    What somebody else put at `path` since is left alone: only the very file that the staged manifest describes is
    taken away.
    """
    if not stage.is_dir() or stage.is_symlink():
        stage.unlink(missing_ok=True)
        return
    _take_back(stage, path, sidecar)
    # The manifest first: it must not outlive the file beside it, or the stage would look like a commit.
    (stage / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(stage)


def _take_back(stage: Path, path: Path, sidecar: Path) -> None:
    manifest, withdrawn = stage / MANIFEST_NAME, stage / WITHDRAWN_MANIFEST
    old, old_manifest = stage / REPLACED_FILE, stage / REPLACED_MANIFEST
    if _has_new_file(stage):
        pass
    elif os.path.lexists(manifest):
        if not _describes(manifest, path):
            return
        if os.path.lexists(old):
            manifest.rename(withdrawn)  # from here on the way leads back, even if nothing else is done
        else:
            path.rename(stage / TAKEN_BACK)
    elif not os.path.lexists(withdrawn):
        return  # all was done
    if os.path.lexists(old):
        if not os.path.lexists(path):
            old.rename(path)
        elif _describes(withdrawn, path):
            old.replace(path)
    if os.path.lexists(old_manifest) and not os.path.lexists(sidecar):
        old_manifest.rename(sidecar)


def pending_manifest(path: Path) -> Path | None:
    """The manifest of the file `path` while it lies in the stage of a commit that was cut short, or None."""
    stage = beside(path, STAGE)
    if not stage.is_dir() or stage.is_symlink():
        return None
    names = _names(stage)
    if names - RECORDS or (WITHDRAWN_MANIFEST in names and REPLACED_FILE not in names):
        name = REPLACED_MANIFEST
    else:
        name = WITHDRAWN_MANIFEST if WITHDRAWN_MANIFEST in names else MANIFEST_NAME
    return stage / name if name in names else None


def _has_new_file(stage: Path) -> bool:
    return bool(_names(stage) - RECORDS)


def _names(stage: Path) -> set[str]:
    return {path.name for path in stage.iterdir()}


def _describes(manifest: Path, path: Path) -> bool:
    """Whether the file at `path` is the one that `manifest` gives the size and digest of."""
    try:
        (entry,) = json.loads(manifest.read_bytes())["files"].values()
        source = SourceFile.open(path)
        return bool(source.size == entry["size"] and file_digest(source) == entry["sha256"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, QuantkitError):
        return False

"""The manifest: what an artifact is made of, where it came from, and the SHA-256 of every file.

It lies inside a folder artifact as `quantkit.json`, and beside a single file `X` as `X.quantkit.json`. None of the
containers has a checksum of its own, so this is what tells a whole artifact from a damaged one. A digest that lies
beside its file finds accidents, not attacks: whoever changes one can change both.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import __version__
from quantkit.artifacts.file_pair import MANIFEST_NAME, pending_manifest
from quantkit.errors import (
    IncompleteCheckpoint,
    MalformedFile,
    QuantkitError,
    ReadFailed,
    SourceChanged,
    UnsafePath,
    VerificationFailed,
)
from quantkit.files.digest import file_digest
from quantkit.files.member import open_member, read_member_json
from quantkit.files.planned_files import PlannedArtifact
from quantkit.files.source_file import SourceFile

SIDECAR_SUFFIX = ".quantkit.json"
CARD_NAME = "README.md"
"""The model card: people write in it, and no engine reads it."""
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
READ_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json", ".jinja", ".model", ".py")
"""Files that some loader takes for a part of the model when they lie in its folder."""


def manifest_path(path: Path) -> Path:
    """Where the manifest of the artifact `path` lies: inside a folder, beside a file.

    A file whose publishing was cut short may have it in the stage: `quantkit.artifacts.file_pair`.
    """
    if path.is_dir():
        return path / MANIFEST_NAME
    sidecar = path.with_name(path.name + SIDECAR_SUFFIX)
    return sidecar if os.path.lexists(sidecar) else pending_manifest(path) or sidecar


def describe(planned: PlannedArtifact) -> dict[str, Any]:
    """The part of the manifest that is known before any unit is produced."""
    tensors = [
        {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape), "nbytes": tensor.nbytes}
        for tensor in planned.tensors
    ]
    return {
        "quantkit": __version__,
        "manifest_version": MANIFEST_VERSION,
        "format": planned.format,
        "options": planned.options,
        "tensors": tensors,
        "notes": list(planned.notes),
    }


def encoded(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as canonical JSON: sorted keys, ASCII, one value per line, a newline at the end."""
    return (json.dumps(plain(manifest), sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def plain(value: object) -> object:
    """`value` in JSON's own types: mappings, sequences and numpy scalars converted, NaN and infinities as null.

    A report comes after hours of work; one undefined ratio or one file name that is not Unicode must not void them.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def artifact_of(path: Path) -> Path:
    """The folder artifact that the file `path` is one of, by its manifest, as a part of a split model is; or `path`."""
    folder = path.parent
    if path.is_dir() or os.path.lexists(manifest_path(path)) or not os.path.lexists(folder / MANIFEST_NAME):
        return path
    try:
        manifest = read_manifest(folder)
    except QuantkitError:  # a folder's own matter
        return path
    return folder if manifest is not None and path.name in manifest["files"] else path


def read_manifest(path: Path) -> Mapping[str, Any] | None:
    """The manifest of the artifact `path`, or of the folder that it is a part of; None when there is none.

    Raises:
        MalformedFile: it is not strict JSON, of another version, or lists something that is not a bare file name
            with a size and a digest.
        UnsafePath, ReadFailed, SourceChanged: see `read_member`.
    """
    where = manifest_path(artifact_of(path))
    if not os.path.lexists(where):
        return None
    manifest = read_member_json(where.parent, where.name, limit=MAX_MANIFEST_BYTES)
    if "manifest_version" not in manifest:
        raise MalformedFile(f"{where}: is not a quantkit manifest")
    if manifest["manifest_version"] != MANIFEST_VERSION:
        raise MalformedFile(
            f"{where}: manifest version {str(manifest['manifest_version'])[:20]!r}, only {MANIFEST_VERSION} is known",
            hint="use the quantkit version that wrote it, or a newer one",
        )
    files = manifest.get("files")
    if not isinstance(files, Mapping) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise MalformedFile(f"{where}: 'files' must give a size and a sha256 for each bare file name")
    return manifest


def _is_entry(name: str, entry: object) -> bool:
    if not is_bare(name) or not isinstance(entry, Mapping):
        return False
    size, digest = entry.get("size"), entry.get("sha256")
    return type(size) is int and size >= 0 and isinstance(digest, str) and len(digest) == 64


def is_bare(name: str) -> bool:
    """Whether `name` names a file in a folder and nothing else: no separator, no `..`, no NUL, valid Unicode."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)


def check_files(path: Path, manifest: Mapping[str, Any] | None = None) -> list[str]:
    """Hash every file of the artifact `path`, or of the one that it is a part of, and compare with its manifest.

    manifest: as `read_manifest` gave it; None = it is read.

    Returns:
        Notes that are no failure, one line each: there is no manifest; a file that the manifest does not list, and that
        no loader reads; a model card that is not as it was written.

    Raises:
        VerificationFailed: files that are missing, renamed, truncated, too long, changed, or unlisted where loaders
            read such files, all in one line.
        MalformedFile: the manifest itself is damaged.
    """
    path = artifact_of(path)
    manifest = manifest or read_manifest(path)
    if manifest is None:
        if not path.exists():
            raise VerificationFailed(f"{path}: is missing")
        return [f"{path}: has no manifest ({manifest_path(path).name}); its files were not checked"]
    files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    if path.is_dir():
        present = {entry.name for entry in path.iterdir()} - {MANIFEST_NAME}
        weighty = {name: entry for name, entry in files.items() if name != CARD_NAME}
        problems = [_member_problem(path, name, entry) for name, entry in weighty.items() if name in present]
        unlisted = present - set(files)
        for name in sorted(set(weighty) - present):
            renamed = _same_content(path, unlisted, files[name])
            unlisted -= {renamed}
            problems.append(f"'{name}' is missing" + (f", it was renamed to '{renamed}'" if renamed else ""))
    else:
        # The one file has the name that the user gave it, and may have another by now.
        problems = [_problem(lambda: SourceFile.open(path), path.name, entry) for entry in files.values()]
        problems += [] if files else [f"the manifest does not list '{path.name}'"]
        unlisted = set()
    intruders = sorted(name for name in unlisted if name.endswith(READ_SUFFIXES))
    problems += [f"'{name}' is not in the manifest, and loaders read such files" for name in intruders]
    found = [problem for problem in problems if problem]
    if found:
        raise VerificationFailed(f"{path}: {'; '.join(found)}", hint="copy or export it again")
    left = sorted(unlisted - set(intruders))
    return [
        *_card_notes(path, files),
        *(f"{path}: '{name}' is not in the manifest; it was not checked" for name in left),
    ]


def _card_notes(path: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problem = _member_problem(path, CARD_NAME, files[CARD_NAME]) if path.is_dir() and CARD_NAME in files else None
    return [f"{path}: {problem}; no engine reads it"] if problem else []


def _member_problem(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    return _problem(lambda: open_member(folder, name), name, entry)


def _problem(look: Callable[[], SourceFile], name: str, entry: Mapping[str, Any]) -> str | None:
    try:
        source = look()
        if source.size < entry["size"]:
            return f"'{name}' is truncated: {source.size} bytes of {entry['size']}"
        if source.size > entry["size"]:
            return f"'{name}' is too long: {source.size} bytes, should be {entry['size']}"
        found = file_digest(source)
    except IncompleteCheckpoint:
        return f"'{name}' is missing"
    except (MalformedFile, ReadFailed, SourceChanged, UnsafePath) as error:
        return str(error)
    return None if found == entry["sha256"] else f"'{name}' was changed: its SHA-256 differs"


def _same_content(folder: Path, names: Iterable[str], entry: Mapping[str, Any]) -> str | None:
    return next((name for name in sorted(names) if _member_problem(folder, name, entry) is None), None)

"""SHA-256 of input files: streamed in pieces that fit the processor's cache, never mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

from quantkit.errors import Interrupted
from quantkit.files.source_file import SourceFile

PIECE = 1 << 20
"""Bytes hashed at a time: enough that `hashlib` works outside the interpreter lock, few enough for the cache."""


def file_digest(source: SourceFile, cancelled: Event | None = None) -> str:
    """SHA-256 (hexadecimal) of a file.

    Raises:
        SourceChanged, ReadFailed: see `SourceFile.read`.
        Interrupted: `cancelled` was set meanwhile, by another thread.
    """
    sha256 = hashlib.sha256()
    for start in range(0, source.size, PIECE):
        if cancelled is not None and cancelled.is_set():
            raise Interrupted(f"hashing {source.path} was stopped")
        sha256.update(source.read(start, min(PIECE, source.size - start)).data)
    return sha256.hexdigest()


def source_digest(paths: Sequence[Path], cancelled: Event | None = None) -> list[dict[str, Any]]:
    """What the manifest records of the input files: `{"name", "size", "sha256"}` of each, in the order given.

    One sequential read of every file. Names are bare, because a path would tell where the user keeps them.

    Raises:
        IncompleteCheckpoint, MalformedFile, UnsafePath: see `SourceFile.open`.
        SourceChanged, ReadFailed, Interrupted: see `file_digest`.
    """
    sources = [SourceFile.open(path) for path in paths]
    return [
        {"name": source.path.name, "size": source.size, "sha256": file_digest(source, cancelled)} for source in sources
    ]

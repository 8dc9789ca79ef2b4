"""Small artifacts to publish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedFile, PlannedTensor, Unit, blob


def folder_plan(*files: PlannedFile, **changes: Any) -> PlannedArtifact:
    return PlannedArtifact(**{"format": "demo", "folder": True, "files": files, "tensors": (), **changes})


def file_plan(data: bytes = b"weights", **changes: Any) -> PlannedArtifact:
    return folder_plan(blob("model.bin", data), folder=False, **changes)


def unit(name: str, *buffers: Buffer, size: int | None = None) -> Unit:
    total = sum(memoryview(buffer).nbytes for buffer in buffers) if size is None else size
    return Unit(name, total, lambda: buffers)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


DEMO = folder_plan(
    blob("config.json", b"{}\n"),
    PlannedFile("model.bin", (unit("a", b"\1\2", b"\3\4"), unit("b", b"\5\6"))),
    tensors=(PlannedTensor("a", "u8", (2, 2), 4),),
    options={"bits": 4, "arch": "native"},
    notes=("a note",),
)
"""A folder of two files, three units and nine bytes."""


def write_source(folder: Path) -> Path:
    """An input file of the bytes `weights`, changed long ago: a tick of the clock is coarser than a test."""
    folder.mkdir()
    path = folder / "in.safetensors"
    path.write_bytes(b"weights")
    os.utime(path, ns=(10**18, 10**18))
    return path

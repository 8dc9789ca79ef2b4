"""The safetensors container, read strictly; `safetensors_writer.py` plans what is written.

    u64 little-endian n | n bytes of JSON, padded with spaces | data

`safetensors_header.py` has the JSON and its rules.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile
from quantkit.files.safetensors_header import Extent, parse_header
from quantkit.files.source_file import SourceFile
from quantkit.tensors.views import TensorView

MAX_HEADER_BYTES = 100_000_000

_LENGTH_BYTES = 8
_SMALLEST_FILE = _LENGTH_BYTES + len("{}")
_FOREIGN: tuple[tuple[bytes, type[MalformedFile], str, str], ...] = (
    (b"version https://git-lfs", IncompleteFile, "a Git LFS pointer, not the weights", "run `git lfs pull` there"),
    (b"<!doctype", IncompleteFile, "an HTML page, not weights", "the download failed; repeat it"),
    (b"<html", IncompleteFile, "an HTML page, not weights", "the download failed; repeat it"),
    (b"<?xml", IncompleteFile, "an XML page, not weights", "the download failed; repeat it"),
    (b"pk\x03\x04", MalformedFile, "a zip archive (a PyTorch pickle)", "convert it with a tool that you trust"),
    (b"\x80", MalformedFile, "a Python pickle, which is never opened", "convert it with a tool that you trust"),
    (b"gguf", MalformedFile, "a GGUF file under a wrong name", "rename it to .gguf"),
    (b"\x1f\x8b", MalformedFile, "compressed with gzip", "unpack it first"),
)
"""What stands where weights should: first bytes in lower case, cause, description, hint."""


def open_safetensors(path: Path) -> dict[str, TensorView]:
    """Read and check the header of `path`; the views read their rows from it later.

    Returns:
        Views by name, in the order of their data.

    Raises:
        IncompleteFile: the file ends early, or is a page or pointer that stands for it.
        MalformedFile: a rule of the format is broken; names the file and the tensor.
        UnsupportedModel: a dtype of the format that quantkit does not read.
        IncompleteCheckpoint, UnsafePath, ReadFailed: the file cannot be opened (see `SourceFile`).

    Reading a view raises `SourceChanged` when the file is no longer what it was.
    """
    file = SourceFile.open(path)
    length = _header_length(file)
    start = _LENGTH_BYTES + length
    extents = parse_header(file.read(_LENGTH_BYTES, length).tobytes(), str(path), file.size - start)
    return {extent.name: _view(file, start, extent) for extent in extents}


def _header_length(file: SourceFile) -> int:
    head = file.read(0, min(file.size, 512)).tobytes()
    if file.size < _SMALLEST_FILE:
        raise IncompleteFile(f"{file.path} has {file.size} bytes; a safetensors file has at least {_SMALLEST_FILE}")
    (length,) = struct.unpack_from("<Q", head)
    available = file.size - _LENGTH_BYTES
    if length > min(MAX_HEADER_BYTES, available) or head[_LENGTH_BYTES] not in b"{ \t\r\n":
        _refuse_foreign(file, head)
    if length > MAX_HEADER_BYTES:
        raise MalformedFile(f"{file.path}: header length {length:,} is over the limit of {MAX_HEADER_BYTES:,}")
    if length > available:
        raise IncompleteFile(
            f"{file.path}: the header has {length:,} bytes, the file ends after {available:,} of them",
            hint="the download is incomplete; repeat it",
        )
    return int(length)


def _refuse_foreign(file: SourceFile, head: bytes) -> None:
    start = head.lstrip().lower()
    for magic, cause, what, hint in _FOREIGN:
        if start.startswith(magic):
            raise cause(f"{file.path} is {what} ({file.size:,} bytes)", hint=hint)


def _view(file: SourceFile, start: int, extent: Extent) -> TensorView:
    row_shape = extent.shape[1:]
    row_bytes = math.prod(row_shape) * extent.dtype.itemsize
    rows = extent.shape[0] if extent.shape else 1

    def fetch(first: int, last: int) -> np.ndarray:
        if not 0 <= first <= last <= rows:
            raise IndexError(f"rows {first}:{last} of tensor {extent.name!r}, which has {rows}")
        data = file.read(start + extent.begin + first * row_bytes, (last - first) * row_bytes)
        if extent.dtype == np.bool_ and data.size and data.max() > 1:
            raise MalformedFile(f"{file.path}: tensor {extent.name!r} is BOOL and holds byte {data.max()}")
        return data.view(extent.dtype).reshape((last - first, *row_shape) if extent.shape else ())

    return TensorView(extent.name, extent.dtype, extent.shape, fetch)

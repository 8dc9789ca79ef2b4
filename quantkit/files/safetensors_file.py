"""The safetensors container, read strictly; `safetensors_writer.py` plans what is written.

    u64 little-endian n | n bytes of JSON, padded with spaces | data

`safetensors_header.py` has the JSON and its rules.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile
from quantkit.files.foreign_file import read_head, refuse_foreign
from quantkit.files.safetensors_header import Extent, parse_header
from quantkit.files.source_file import SourceFile
from quantkit.tensors.views import TensorView

MAX_HEADER_BYTES = 100_000_000

_LENGTH_BYTES = 8
_SMALLEST_FILE = _LENGTH_BYTES + len("{}")


def open_safetensors(file: SourceFile) -> dict[str, TensorView]:
    """Read and check the header of `file`; the views read their rows from it later.

    Returns:
        Views by name, in the order of their data.

    Raises:
        IncompleteFile: the file ends early, or is a page or pointer that stands for it.
        MalformedFile: a rule of the format is broken; names the file and the tensor.
        UnsupportedModel: a dtype of the format that quantkit does not read.
        ReadFailed, SourceChanged: see `SourceFile.read`.

    Reading a view raises `SourceChanged` when the file is no longer what it was.
    """
    length = _header_length(file)
    start = _LENGTH_BYTES + length
    extents = parse_header(file.read(_LENGTH_BYTES, length).tobytes(), str(file.path), file.size - start)
    return {extent.name: _view(file, start, extent) for extent in extents}


def _header_length(file: SourceFile) -> int:
    head = read_head(file)
    if file.size < _SMALLEST_FILE:
        refuse_foreign(file, head)
        raise IncompleteFile(f"{file.path} has {file.size} bytes; a safetensors file has at least {_SMALLEST_FILE}")
    (length,) = struct.unpack_from("<Q", head)
    available = file.size - _LENGTH_BYTES
    if length > min(MAX_HEADER_BYTES, available) or head[_LENGTH_BYTES] not in b"{ \t\r\n":
        refuse_foreign(file, head)
    if length > MAX_HEADER_BYTES:
        raise MalformedFile(f"{file.path}: header length {length:,} is over the limit of {MAX_HEADER_BYTES:,}")
    if length > available:
        raise IncompleteFile(
            f"{file.path}: the header has {length:,} bytes, the file ends after {available:,} of them",
            hint="the download is incomplete; repeat it",
        )
    return int(length)


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

"""The GGUF container (versions 2 and 3): a strict reader. Little-endian throughout.

    "GGUF" | u32 version | u64 tensors | u64 keys | key-values | tensor infos | zeros to alignment | data
    string        u64 bytes | UTF-8
    key-value     string key | u32 type | value        array value: u32 element type | u64 count | elements
    tensor info   string name | u32 dimensions | u64 each, fastest first | u32 type | u64 offset from start of data

Every tensor starts where the one before ends, padded to `general.alignment` (32 unless said otherwise). Sources:
ggml's `gguf.h` and `gguf.cpp`; what those accept and should not is refused here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile, UnsupportedModel
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.types import ALIGNMENT, REMOVED_TYPES, TYPES, ValueType, padding, tensor_bytes
from quantkit.exporters.gguf.container.values import Cursor, read_metadata
from quantkit.files.foreign_file import read_head, refuse_foreign
from quantkit.files.source_file import SourceFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 100_000
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 16

_HEADER = struct.Struct("<4sIQQ")
_KEY_LEAST_BYTES = 8 + 1 + 4 + 1
_INFO_LEAST_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor: numpy shape (slowest axis first), and its first byte, counted from the start of `file`."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int
    file: SourceFile

    @property
    def nbytes(self) -> int:
        """Bytes of the data, padding aside."""
        return tensor_bytes(self.type, self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class GGUFFile:
    """A GGUF file whose header has been read and checked against the file's size, or the parts of one as if joined.

    files: the file, or its parts in order. kinds: the types of the metadata's values, `ValueType`.
    metadata: numbers as int or float, BOOL as bool, strings as str; arrays of strings as list, of numbers as ndarray.
    """

    files: tuple[SourceFile, ...]
    metadata: Mapping[str, Any]
    kinds: Mapping[str, int]
    tensors: Mapping[str, TensorInfo]

    @property
    def path(self) -> Path:
        """Where the file is, or the first part."""
        return self.files[0].path

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along the slowest axis, as stored: uint8 (stop - start, bytes per row)."""
        info = self.tensors[name]
        row_bytes = info.nbytes // info.shape[0]
        data = info.file.read(info.start + start * row_bytes, (stop - start) * row_bytes)
        return data.reshape(stop - start, row_bytes)


def read_gguf(path: Path, file: SourceFile | None = None) -> GGUFFile:
    """Read and check the header of `path` by itself; no tensor data is read. `file` is it, where it was looked at.

    Raises:
        IncompleteFile: the file ends before what its header promises.
        MalformedFile: a rule of the format is broken; names the key or tensor.
        UnsupportedModel: big-endian.
        IncompleteCheckpoint, UnsafePath, ReadFailed: the file cannot be opened (see `SourceFile`).
    """
    file = file or SourceFile.open(path)
    cursor = Cursor(file)
    tensors, keys = _read_counts(cursor)
    metadata, kinds = read_metadata(cursor, keys)
    alignment = _alignment(metadata, kinds, cursor)
    infos = [_read_info(cursor, number) for number in range(1, tensors + 1)]
    return GGUFFile((file,), metadata, kinds, _placed(infos, cursor, alignment))


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    """Check magic, version and counts; return (tensors, keys)."""
    where, size = cursor.where, cursor.file.size
    head = read_head(cursor.file)
    if not head.startswith(MAGIC):
        refuse_foreign(cursor.file, head)
    if size < _HEADER.size:
        raise IncompleteFile(f"{where} has {size} bytes; the header of a GGUF file has {_HEADER.size}")
    magic, version, tensors, keys = _HEADER.unpack(cursor.take(_HEADER.size, "the header"))
    if magic != MAGIC:
        raise MalformedFile(f"{where} starts with {magic!r}, not {MAGIC!r}; it is not a GGUF file")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS:
            raise UnsupportedModel(f"{where} is big-endian", hint="convert it with gguf-py's gguf_convert_endian")
        raise MalformedFile(f"{where} is GGUF version {version}; 2 and 3 are supported")
    for count, limit, least, what in (
        (keys, MAX_KEYS, _KEY_LEAST_BYTES, "keys"),
        (tensors, MAX_TENSORS, _INFO_LEAST_BYTES, "tensors"),
    ):
        if count > limit:
            raise MalformedFile(f"{where} claims {count:,} {what}; the limit is {limit:,}")
        if count * least > cursor.left:
            raise IncompleteFile(f"{where} claims {count:,} {what}; {cursor.left:,} bytes left")
    return tensors, keys


def _alignment(metadata: Mapping[str, Any], kinds: Mapping[str, int], cursor: Cursor) -> int:
    alignment: int = metadata.get("general.alignment", ALIGNMENT)
    where = f"{cursor.where}: general.alignment"
    if kinds.get("general.alignment", ValueType.UINT32) != ValueType.UINT32:
        raise MalformedFile(f"{where} must be UINT32")
    if alignment < MIN_ALIGNMENT or alignment > MAX_ALIGNMENT:
        raise MalformedFile(f"{where} {alignment} is outside {MIN_ALIGNMENT} to {MAX_ALIGNMENT:,}")
    if alignment.bit_count() != 1:
        raise MalformedFile(f"{where} {alignment} is not a power of two")
    return alignment


@dataclass(frozen=True, slots=True)
class _RawInfo:
    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int


def _read_info(cursor: Cursor, number: int) -> _RawInfo:
    name = cursor.string(MAX_NAME_BYTES, "tensor {}: the name", number)
    where = f"{cursor.where}: tensor {name!r}"
    if not name or not name.isprintable():
        raise MalformedFile(f"{cursor.where}: tensor {number}: the name {name!r} is empty or not printable")
    count = cursor.integer(4, "tensor {!r}: the shape", name)
    if not 1 <= count <= MAX_DIMENSIONS:
        raise MalformedFile(f"{where}: {count:,} dimensions; there are 1 to {MAX_DIMENSIONS}")
    dimensions = [cursor.integer(8, "tensor {!r}: the shape", name) for _ in range(count)]
    if min(dimensions) < 1:
        raise MalformedFile(f"{where}: a dimension is 0")
    if math.prod(dimensions) >= 1 << 63:
        raise MalformedFile(f"{where}: more than 2^63 elements")
    block = _block_type(cursor.integer(4, "tensor {!r}: the type", name), where)
    if dimensions[0] % block.elements:
        raise MalformedFile(f"{where}: row of {dimensions[0]:,} is not a multiple of {block.elements} ({block.name})")
    offset = cursor.integer(8, "tensor {!r}: the offset", name)
    return _RawInfo(name, block, tuple(reversed(dimensions)), offset)


def _block_type(number: int, where: str) -> BlockType:
    if number in REMOVED_TYPES:
        raise MalformedFile(f"{where}: type {number} ({REMOVED_TYPES[number]}) was removed from GGUF")
    if number not in TYPES:
        raise MalformedFile(f"{where}: unknown type {number}")
    return TYPES[number]


def _placed(infos: Sequence[_RawInfo], cursor: Cursor, alignment: int) -> dict[str, TensorInfo]:
    """Check that the tensors follow each other without overlap or gap and fill the file; compute their places."""
    start = cursor.position + padding(cursor.position, alignment)
    available = max(cursor.file.size - start, 0)
    tensors: dict[str, TensorInfo] = {}
    expected, previous = 0, "the header"
    for info in infos:
        where = f"{cursor.where}: tensor {info.name!r}"
        if info.name in tensors:
            raise MalformedFile(f"{where} is listed twice")
        if info.offset % alignment:
            raise MalformedFile(f"{where}: offset {info.offset:,} is not a multiple of {alignment}")
        if info.offset < expected:
            raise MalformedFile(f"{where} starts at {info.offset:,}, inside {previous}, which reaches to {expected:,}")
        if info.offset > expected:
            beyond = f", past the end of {available:,} bytes of data" if info.offset > available else ""
            raise MalformedFile(f"{where} starts at {info.offset:,}{beyond}; {previous} ends at {expected:,}")
        tensor = TensorInfo(info.name, info.type, info.shape, start + info.offset, cursor.file)
        if info.offset + tensor.nbytes > available:
            raise IncompleteFile(
                f"{where} needs {tensor.nbytes:,} bytes, {max(available - info.offset, 0):,} left",
                hint="the download is incomplete; repeat it",
            )
        tensors[info.name] = tensor
        expected, previous = info.offset + tensor.nbytes + padding(tensor.nbytes, alignment), repr(info.name)
    if available > expected:
        raise MalformedFile(f"{cursor.where}: {available - expected:,} bytes after the last tensor")
    return tensors

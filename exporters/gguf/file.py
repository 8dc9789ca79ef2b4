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
from quantkit.exporters.gguf.types import ALIGNMENT, NUMBERS, REMOVED_TYPES, TYPES, ValueType, padding, tensor_bytes
from quantkit.files.foreign_file import read_head, refuse_foreign
from quantkit.files.source_file import SourceFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 100_000
MAX_TENSORS = 1_000_000
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ELEMENTS = 16 << 20
MAX_KEY_BYTES = 1 << 12
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 16

_HEADER = struct.Struct("<4sIQQ")
_WINDOW_BYTES = 1 << 20
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
    cursor = _Cursor(file)
    tensors, keys = _read_counts(cursor)
    metadata: dict[str, Any] = {}
    kinds: dict[str, int] = {}
    for number in range(1, keys + 1):
        key = _read_key(cursor, number, keys)
        if key in metadata:
            raise MalformedFile(f"{path}: key {key!r} is listed twice")
        metadata[key], kinds[key] = _read_value(cursor, key)
    alignment = _alignment(metadata, cursor)
    infos = [_read_info(cursor, number) for number in range(1, tensors + 1)]
    return GGUFFile((file,), metadata, kinds, _placed(infos, cursor, alignment))


class _Cursor:
    """A position in the header; every read is checked against the bytes that are left before it is made."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.where = str(file.path)
        self.window = b""
        self.place = 0
        self.next = 0  # the file's offset where the window ends

    @property
    def position(self) -> int:
        return self.next - len(self.window) + self.place

    @property
    def left(self) -> int:
        return self.file.size - self.position

    def take(self, size: int, what: str, *args: object) -> bytes:
        """The next `size` bytes; `what`, formatted with `args`, names them when the file ends before."""
        if size > len(self.window) - self.place:
            if size > self.left:
                raise IncompleteFile(
                    f"{self.where}: {what.format(*args)} has {size:,} bytes; {self.left:,} left",
                    hint="the download is incomplete or the file is damaged; repeat it",
                )
            start = self.position
            self.window = self.file.read(start, min(self.left, max(size, _WINDOW_BYTES))).tobytes()
            self.place, self.next = 0, start + len(self.window)
        data = self.window[self.place : self.place + size]
        self.place += size
        return data

    def integer(self, size: int, what: str, *args: object) -> int:
        return int.from_bytes(self.take(size, what, *args), "little")

    def string(self, limit: int, what: str, *args: object) -> str:
        size = self.integer(8, what, *args)
        if size > limit:
            raise MalformedFile(
                f"{self.where}: {what.format(*args)} has {size:,} bytes; the limit is {limit:,}, {self.left:,} left"
            )
        try:
            return self.take(size, what, *args).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.where}: {what.format(*args)} is not UTF-8") from None


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
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


def _read_key(cursor: _Cursor, number: int, total: int) -> str:
    key = cursor.string(MAX_KEY_BYTES, "key {} of {:,}", number, total)
    if not key:
        raise MalformedFile(f"{cursor.where}: key {number} is empty")
    return key


def _read_value(cursor: _Cursor, key: str) -> tuple[Any, int]:
    kind = cursor.integer(4, "key {!r}: the type", key)
    if kind == ValueType.STRING:
        return cursor.string(MAX_STRING_BYTES, "key {!r}: the string", key), kind
    if kind == ValueType.ARRAY:
        return _read_array(cursor, key), kind
    return _read_numbers(cursor, key, kind, 1).tolist()[0], kind


def _read_array(cursor: _Cursor, key: str) -> list[str] | np.ndarray:
    kind = cursor.integer(4, "key {!r}: the element type", key)
    count = cursor.integer(8, "key {!r}: the count", key)
    if kind == ValueType.ARRAY:
        raise MalformedFile(f"{cursor.where}: key {key!r}: arrays inside arrays are not supported")
    least = 8 if kind == ValueType.STRING else _number_dtype(cursor, key, kind).itemsize
    if count > MAX_ARRAY_ELEMENTS:
        raise MalformedFile(f"{cursor.where}: key {key!r}: array of {count:,}; the limit is {MAX_ARRAY_ELEMENTS:,}")
    if count * least > cursor.left:
        raise IncompleteFile(f"{cursor.where}: key {key!r}: array of {count:,}; {cursor.left:,} bytes left")
    if kind == ValueType.STRING:
        return [cursor.string(MAX_STRING_BYTES, "key {!r}: string {:,}", key, i) for i in range(count)]
    return _read_numbers(cursor, key, kind, count)


def _read_numbers(cursor: _Cursor, key: str, kind: int, count: int) -> np.ndarray:
    dtype = _number_dtype(cursor, key, kind)
    values = np.frombuffer(cursor.take(count * dtype.itemsize, "key {!r}: the value", key), dtype)
    if kind != ValueType.BOOL:
        return values
    if values.size and values.max() > 1:
        raise MalformedFile(f"{cursor.where}: key {key!r}: boolean byte is {values.max()}")
    return values.view(np.bool_)


def _number_dtype(cursor: _Cursor, key: str, kind: int) -> np.dtype:
    if kind not in NUMBERS:
        raise MalformedFile(f"{cursor.where}: key {key!r}: unknown type {kind}")
    return NUMBERS[kind]


def _alignment(metadata: Mapping[str, Any], cursor: _Cursor) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    where = f"{cursor.where}: general.alignment"
    if not isinstance(alignment, int) or isinstance(alignment, bool):
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


def _read_info(cursor: _Cursor, number: int) -> _RawInfo:
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


def _placed(infos: Sequence[_RawInfo], cursor: _Cursor, alignment: int) -> dict[str, TensorInfo]:
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

"""Keys and values at the head of a GGUF file: read in one pass, every length checked before it is believed.

    string        u64 bytes | UTF-8
    key-value     string key | u32 type | value        array value: u32 element type | u64 count | elements

Strings cost far more memory and time than the bytes that they take in the file, so there is a limit to how many a
file may hold in all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile
from quantkit.exporters.gguf.container.types import NUMBERS, ValueType
from quantkit.files.source_file import SourceFile

MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ELEMENTS = 16 << 20
MAX_STRINGS = 2_000_000
"""Strings in all arrays of a file: a vocabulary of 262,144 with its merges has 800,000."""
MAX_METADATA_BYTES = 64 << 20
"""Bytes of all keys and values: such a vocabulary has 20 MB."""
MAX_KEY_BYTES = 1 << 12

_WINDOW_BYTES = 1 << 20


class Cursor:
    """A position in the header; every read is checked against the bytes that are left before it is made."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.where = str(file.path)
        self.window = b""
        self.place = 0
        self.next = 0  # the file's offset where the window ends
        self.strings = MAX_STRINGS  # that arrays may still hold

    @property
    def position(self) -> int:
        """Bytes of the file that have been read."""
        return self.next - len(self.window) + self.place

    @property
    def left(self) -> int:
        """Bytes of the file behind them."""
        return self.file.size - self.position

    def take(self, size: int, what: str, *args: object) -> bytes:
        """The next `size` bytes; `what`, formatted with `args`, names them when the file ends before."""
        if size > len(self.window) - self.place:
            if size > self.left:
                raise IncompleteFile(
                    f"{self.where}: {what.format(*args)} has {size:,} bytes; {self.left:,} left",
                    hint="the download is incomplete or the file is damaged; repeat it",
                )
            self._refill(size)
        data = self.window[self.place : self.place + size]
        self.place += size
        return data

    def _refill(self, size: int) -> None:
        start = self.position
        self.window = self.file.read(start, min(self.left, max(size, _WINDOW_BYTES))).tobytes()
        self.place, self.next = 0, start + len(self.window)

    def integer(self, size: int, what: str, *args: object) -> int:
        """The next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size, what, *args), "little")

    def string(self, limit: int, what: str, *args: object) -> str:
        """The next string; raises `MalformedFile` when it has more than `limit` bytes or is not UTF-8."""
        size = self.integer(8, what, *args)
        if size > limit:
            raise MalformedFile(
                f"{self.where}: {what.format(*args)} has {size:,} bytes; the limit is {limit:,}, {self.left:,} left"
            )
        try:
            return self.take(size, what, *args).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.where}: {what.format(*args)} is not UTF-8") from None

    def strings_of(self, count: int, key: str) -> list[str]:
        """The next `count` strings, an array's: straight from the window where they lie in it whole."""
        found: list[str] = []
        while len(found) < count:
            window, place, end = self.window, self.place, len(self.window)
            try:
                while place + 8 <= end and len(found) < count:
                    stop = place + 8 + int.from_bytes(window[place : place + 8], "little")
                    if stop > end:
                        break
                    found.append(window[place + 8 : stop].decode("utf-8"))
                    place = stop
            except UnicodeDecodeError:
                raise MalformedFile(f"{self.where}: key {key!r}: string {len(found):,} is not UTF-8") from None
            self.place = place
            if len(found) < count:  # one that goes on behind the window, or is damaged
                found.append(self.string(MAX_STRING_BYTES, "key {!r}: string {:,}", key, len(found)))
        return found


def read_metadata(cursor: Cursor, keys: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Read `keys` keys with their values.

    Returns:
        Every key's value (see `GGUFFile.metadata`), and the number of its type.

    Raises:
        IncompleteFile, MalformedFile: the file ends before, or a rule or limit is broken; names the key.
    """
    metadata: dict[str, Any] = {}
    kinds: dict[str, int] = {}
    for number in range(1, keys + 1):
        key = _read_key(cursor, number, keys)
        if key in metadata:
            raise MalformedFile(f"{cursor.where}: key {key!r} is listed twice")
        kinds[key] = cursor.integer(4, "key {!r}: the type", key)
        metadata[key] = _read_value(cursor, key, kinds[key])
        if cursor.position > MAX_METADATA_BYTES:
            raise MalformedFile(
                f"{cursor.where}: key {key!r} ends at byte {cursor.position:,}; the limit for all keys is "
                f"{MAX_METADATA_BYTES:,}"
            )
    return metadata, kinds


def _read_key(cursor: Cursor, number: int, total: int) -> str:
    key = cursor.string(MAX_KEY_BYTES, "key {} of {:,}", number, total)
    if not key:
        raise MalformedFile(f"{cursor.where}: key {number} is empty")
    return key


def _read_value(cursor: Cursor, key: str, kind: int) -> Any:  # noqa: ANN401 - whatever type the file declares
    if kind == ValueType.STRING:
        return cursor.string(MAX_STRING_BYTES, "key {!r}: the string", key)
    if kind == ValueType.ARRAY:
        return _read_array(cursor, key)
    return _read_numbers(cursor, key, kind, 1).tolist()[0]


def _read_array(cursor: Cursor, key: str) -> list[str] | np.ndarray:
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
        if count > cursor.strings:
            raise MalformedFile(
                f"{cursor.where}: key {key!r}: array of {count:,} strings; the limit for a file is {MAX_STRINGS:,}"
            )
        cursor.strings -= count
        return cursor.strings_of(count, key)
    return _read_numbers(cursor, key, kind, count)


def _read_numbers(cursor: Cursor, key: str, kind: int, count: int) -> np.ndarray:
    dtype = _number_dtype(cursor, key, kind)
    values = np.frombuffer(cursor.take(count * dtype.itemsize, "key {!r}: the value", key), dtype)
    if kind != ValueType.BOOL:
        return values
    if values.size and values.max() > 1:
        raise MalformedFile(f"{cursor.where}: key {key!r}: boolean byte is {values.max()}")
    return values.view(np.bool_)


def _number_dtype(cursor: Cursor, key: str, kind: int) -> np.dtype:
    if kind not in NUMBERS:
        raise MalformedFile(f"{cursor.where}: key {key!r}: unknown type {kind}")
    return NUMBERS[kind]

"""Importance matrices as llama.cpp wrote them before GGUF (`.dat`). Little-endian throughout.

    i32 entries | that many entries | i32 chunks | i32 bytes, name of the text's file
    entry         i32 bytes, name of the tensor | i32 calls | i32 values | float32 each

What follows the entries may be missing, or its name alone. Values are mean squares times calls; where there are no
calls, they are taken as they are. Sources: llama.cpp `tools/imatrix/imatrix.cpp` (`save_imatrix_legacy`),
`common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile

MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 63
"""Of a tensor, as in GGUF."""
MAX_TEXT_BYTES = 1 << 12
"""Of the name of the text's file."""


def read_legacy(data: bytes, where: str) -> tuple[dict[str, np.ndarray], tuple[str, ...], int]:
    """Weights by the tensor's name, float32 [values]; names of texts; and chunks, 0 where the file does not say.

    Raises:
        IncompleteFile, MalformedFile: a rule of the format is broken; names the entry.
    """
    cursor = _Cursor(data, where)
    count = cursor.integer("the number of entries", 1, MAX_ENTRIES)
    weights: dict[str, np.ndarray] = {}
    for number in range(1, count + 1):
        name, values = _entry(cursor, number)
        if name in weights:
            raise MalformedFile(f"{where}: entry {name!r} is listed twice")
        weights[name] = values
    chunks = cursor.integer("the number of chunks", 0, (1 << 31) - 1) if cursor.left else 0
    texts: tuple[str, ...] = ()
    if cursor.left:
        size = cursor.integer("the name of the text", 0, MAX_TEXT_BYTES)
        texts = (cursor.text(size, "the name of the text"),) if size else ()
    if cursor.left:
        raise MalformedFile(f"{where}: {cursor.left:,} bytes behind the name of the text")
    return weights, texts, chunks


def _entry(cursor: _Cursor, number: int) -> tuple[str, np.ndarray]:
    what = f"entry {number:,}"
    name = cursor.text(cursor.integer(f"{what}: the length of its name", 1, MAX_NAME_BYTES), f"{what}: its name")
    what = f"entry {name!r}"
    calls = cursor.integer(f"{what}: its calls", 0, (1 << 31) - 1)
    size = cursor.integer(f"{what}: the number of its values", 1, (1 << 31) - 1)
    values = np.frombuffer(cursor.take(4 * size, f"{what}: its values"), "<f4")
    return name, values / np.float32(calls) if calls else values


@dataclass(slots=True)
class _Cursor:
    """A position in the file; every read is checked against the bytes that are left."""

    data: bytes
    where: str
    place: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise IncompleteFile(
                f"{self.where}: {what}: {size:,} bytes, {self.left:,} left",
                hint="the download is incomplete, or this is no importance matrix",
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def integer(self, what: str, least: int, most: int) -> int:
        value = int.from_bytes(self.take(4, what), "little", signed=True)
        if not least <= value <= most:
            raise MalformedFile(
                f"{self.where}: {what} is {value:,}, must be from {least} to {most:,}",
                hint="it is no importance matrix, or damaged",
            )
        return value

    def text(self, size: int, what: str) -> str:
        data = self.take(size, what)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedFile(f"{self.where}: {what} is not UTF-8") from None
        if not text.isprintable():
            raise MalformedFile(f"{self.where}: {what} {text[:80]!r} is not printable")
        return text

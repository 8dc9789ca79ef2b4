"""Changing the metadata of a GGUF file, key by key; all else stays byte for byte.

A reader of its own rather than quantkit's: a fault must not depend on what it tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.types import ValueType

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32


@dataclass(frozen=True, slots=True)
class RawGGUF:
    """A GGUF file in three parts: key to its whole entry (key, type, value), the tensor infos, the tensors' data."""

    tensors: int
    entries: dict[str, bytes]
    infos: bytes
    data: bytes

    def value(self, key: str) -> bytes:
        """The raw value of a key that is no array, its type left off; a string without its length."""
        raw = self.entries[key][8 + len(key.encode()) :]
        return raw[12:] if raw[:4] == struct.pack("<I", _STRING) else raw[4:]

    def with_entry(self, key: str, kind: ValueType, value: int | float | bool | str) -> RawGGUF:
        """The same file with one key set; a new key comes last."""
        return replace(self, entries={**self.entries, key: entry(key, kind, value)})

    def without(self, key: str) -> RawGGUF:
        """The same file without a key that it has."""
        entries = dict(self.entries)
        del entries[key]
        return replace(self, entries=entries)

    def to_bytes(self) -> bytes:
        """The file."""
        head = struct.pack("<4sIQQ", b"GGUF", 3, self.tensors, len(self.entries))
        head += b"".join(self.entries.values()) + self.infos
        return head + bytes(-len(head) % _ALIGNMENT) + self.data


def read_raw(path: Path) -> RawGGUF:
    """Take a GGUF file of quantkit's apart."""
    content = path.read_bytes()
    _, _, tensors, keys = struct.unpack_from("<4sIQQ", content)
    place, entries = 24, {}
    for _ in range(keys):
        start = place
        key, place = _string(content, place)
        kind = int.from_bytes(content[place : place + 4], "little")
        place = _after_value(content, place + 4, kind)
        entries[key] = content[start:place]
    start = place
    for _ in range(tensors):
        _, place = _string(content, place)
        place += 4 + 8 * int.from_bytes(content[place : place + 4], "little") + 12
    return RawGGUF(tensors, entries, content[start:place], content[place + -place % _ALIGNMENT :])


def edit(path: Path, change: Callable[[RawGGUF], RawGGUF]) -> None:
    """Change a file in place."""
    path.write_bytes(change(read_raw(path)).to_bytes())


def _string(content: bytes, place: int) -> tuple[str, int]:
    size = int.from_bytes(content[place : place + 8], "little")
    return content[place + 8 : place + 8 + size].decode(), place + 8 + size


def _after_value(content: bytes, place: int, kind: int) -> int:
    if kind == _STRING:
        return _string(content, place)[1]
    if kind != _ARRAY:
        return place + _SIZES[kind]
    element, count = struct.unpack_from("<IQ", content, place)
    place += 12
    for _ in range(count if element == _STRING else 0):
        place = _string(content, place)[1]
    return place if element == _STRING else place + _SIZES[element] * count

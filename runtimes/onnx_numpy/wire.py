"""The wire format of Protocol Buffers: a message is a run of fields, each a number, a kind and a value.

Strict where the format's own readers are: lengths lie within the message, a varint has at most ten bytes, groups (kinds
3 and 4, which ONNX never had) are refused. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from quantkit.errors import IncompleteFile, MalformedFile

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_VARINT_BYTES = 10
_FIXED = {FIXED64: 8, FIXED32: 4}

Field = tuple[int, int, "int | memoryview"]
"""Number, kind, and value: an unsigned integer of a varint, else the bytes, not copied."""


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of `message` in order.

    Raises:
        IncompleteFile: it ends inside a field. MalformedFile: it is no message.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise MalformedFile(f"no ONNX protobuf: a field has the number 0, before byte {position}")
        if kind == VARINT:
            value, position = _varint(message, position)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, position = _varint(message, position)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise MalformedFile(f"no ONNX protobuf: a field is of kind {kind}, before byte {position}")
        if size > len(message) - position:
            raise IncompleteFile(f"a field of {size:,} bytes begins {len(message) - position:,} bytes before the end")
        yield number, kind, message[position : position + size]
        position += size


def signed(value: int | memoryview) -> int:
    """An int64 or int32 field."""
    if not isinstance(value, int):
        raise MalformedFile("no ONNX protobuf: bytes where an integer belongs")
    return value - (1 << 64) if value >> 63 else value


def signed_run(value: int | memoryview) -> list[int]:
    """A repeated int64 field, packed or one of many."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(signed(number))
    return numbers


def float_of(value: int | memoryview) -> float:
    """A float field."""
    if isinstance(value, int) or len(value) != 4:
        raise MalformedFile("no ONNX protobuf: not four bytes where a float belongs")
    number: float = struct.unpack("<f", value)[0]
    return number


def bytes_of(value: int | memoryview) -> memoryview:
    """A field of bytes, a string or a message."""
    if isinstance(value, int):
        raise MalformedFile("no ONNX protobuf: an integer where bytes belong")
    return value


def text_of(value: int | memoryview) -> str:
    """A string field."""
    try:
        return bytes(bytes_of(value)).decode()
    except UnicodeDecodeError:
        raise MalformedFile("no ONNX protobuf: a string is not UTF-8") from None


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An unsigned integer, and the position behind it."""
    value = 0
    for count in range(MOST_VARINT_BYTES):
        if position + count >= len(data):
            raise IncompleteFile("it ends inside a number")
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & (1 << 64) - 1, position + count + 1
    raise MalformedFile(f"no ONNX protobuf: a number of more than {MOST_VARINT_BYTES} bytes, at byte {position}")

"""Writing the header of a GGUF file; `file.py` describes the layout and reads it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.container.types import NUMBERS, ValueType, padding, tensor_bytes

HEAD_BYTES = struct.calcsize("<4sIQQ")
"""Before the keys."""


def header_bytes(entries: Sequence[bytes], tensors: Sequence[tuple[str, BlockType, tuple[int, ...]]]) -> bytes:
    """Everything before the data, padded to the alignment.

    Args:
        entries: key-values from `entry`, `string_array` and `number_array`.
        tensors: name, type and numpy shape in the order of the data, which the caller pads by `padding`.
    """
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)), *entries]
    offset = 0
    for name, block, shape in tensors:
        parts.append(info_bytes(name, block, shape, offset))
        size = tensor_bytes(block, shape)
        offset += size + padding(size)
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def info_bytes(name: str, block: BlockType, shape: tuple[int, ...], offset: int) -> bytes:
    """The head's part for one tensor, whose data start at `offset`."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _string(name) + dimensions + struct.pack("<IQ", block.id, offset)


def entry(key: str, kind: ValueType, value: int | float | bool | str) -> bytes:
    """One key with a single value."""
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", kind) + _string(value)
    return _string(key) + struct.pack("<I", kind) + np.array(value).astype(NUMBERS[kind]).tobytes()


def string_array(key: str, values: Sequence[str]) -> bytes:
    """One key with an array of strings."""
    head = _string(key) + struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values))
    return head + b"".join(map(_string, values))


def number_array(key: str, kind: ValueType, values: Sequence[float]) -> bytes:
    """One key with an array of numbers."""
    head = _string(key) + struct.pack("<IIQ", ValueType.ARRAY, kind, len(values))
    return head + np.array(values, NUMBERS[kind]).tobytes()


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data

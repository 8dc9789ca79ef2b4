"""Constants: bytes of the .bin as arrays. Elements of less than a byte lie from the lowest bits on, without gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from quantkit.errors import MalformedFile
from quantkit.files.source_file import SourceFile

DTYPES: Mapping[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f64": np.dtype("<f8"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "boolean": np.dtype("?"),
    "i4": np.dtype("i1"),
    "u4": np.dtype("u1"),
    "u2": np.dtype("u1"),
}
"""Element type to the dtype of its values here."""
NARROW = {"i4": 4, "u4": 4, "u2": 2}
"""Bits of the elements that are less than a byte."""
MOST_DIGITS = 18


def constant(data: Mapping[str, str], weights: SourceFile) -> np.ndarray:
    """The value of a constant whose attributes are `data`.

    Raises:
        MalformedFile: attributes that contradict each other, or bytes that are not in the file.
    """
    element = data.get("element_type", "")
    if element not in DTYPES:
        raise MalformedFile(f"{weights.path}: constants of {element[:40]!r} are not known")
    lengths = [text.strip() for text in data.get("shape", "").split(",") if text.strip()]
    shape = tuple(_number(text, "shape", weights) for text in lengths)
    offset, size = (_number(data.get(key, ""), key, weights) for key in ("offset", "size"))
    count = math.prod(shape)
    wanted = -(-count * NARROW.get(element, 8 * DTYPES[element].itemsize) // 8)
    if size != wanted or offset + size > weights.size:
        raise MalformedFile(
            f"{weights.path}: a constant of {list(shape)} {element} has {size} bytes from {offset} on, "
            f"it needs {wanted} of the {weights.size} that there are"
        )
    raw = weights.read(offset, size)
    if element not in NARROW:
        return raw.view(DTYPES[element]).reshape(shape)
    return _spread(raw, NARROW[element], signed=element[0] == "i")[:count].reshape(shape)


def _spread(raw: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """One value per element of `bits` bits."""
    parts = [(raw >> np.uint8(first)) & np.uint8(2**bits - 1) for first in range(0, 8, bits)]
    values = np.stack(parts, axis=-1).reshape(-1)
    if not signed:
        return values
    wide = values.astype(np.int8)
    wide[wide >= 2 ** (bits - 1)] -= np.int8(2**bits)
    return wide


def _number(text: str, key: str, weights: SourceFile) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise MalformedFile(f"{weights.path}: a constant has the {key} {text[:40]!r}")
    return int(text)

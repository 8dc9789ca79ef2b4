"""The values of stored tensors, from the protobuf or from a file beside it.

A file's name comes from a stranger: it must be bare, and lie in the model's folder as every other file of it does
(`quantkit.files.member`). Codes of fewer than eight bits are packed, the first in the lowest bits; values of them have
the dtypes of `ml_dtypes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile, UnsafePath, UnsupportedModel
from quantkit.files.member import open_member
from quantkit.files.source_file import SourceFile
from quantkit.runtimes.onnx_numpy.graph import StoredTensor

DTYPES: Mapping[int, np.dtype] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
    16: np.dtype(ml_dtypes.bfloat16),
    21: np.dtype(ml_dtypes.uint4),
    22: np.dtype(ml_dtypes.int4),
    25: np.dtype(ml_dtypes.uint2),
    26: np.dtype(ml_dtypes.int2),
}
"""`TensorProto.DataType` to the dtype of its values."""
PACKED_BITS: Mapping[np.dtype, int] = {DTYPES[21]: 4, DTYPES[22]: 4, DTYPES[25]: 2, DTYPES[26]: 2}
"""Bits of codes that lie several in a byte."""
KEYS = {"location", "offset", "length", "checksum"}
"""What external data may say of itself."""
MOST_RANK = 8
MOST_DIGITS = 18


def dtype_of(tensor: StoredTensor) -> np.dtype:
    """The dtype of its values; raises `UnsupportedModel` for one that is not evaluated."""
    if tensor.data_type not in DTYPES:
        raise UnsupportedModel(f"tensor {tensor.name!r} is of type {tensor.data_type}, which is not evaluated")
    return DTYPES[tensor.data_type]


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of its values as they are stored.

    Raises:
        MalformedFile: a dimension that cannot be. UnsupportedModel: see `dtype_of`.
    """
    dims = tensor.dims
    if len(dims) > MOST_RANK or any(not 0 <= size < 1 << 48 for size in dims):
        raise MalformedFile(f"tensor {tensor.name!r} has the shape {list(dims[:MOST_RANK])}, which there cannot be")
    dtype = dtype_of(tensor)
    return -(-math.prod(dims) * PACKED_BITS.get(dtype, 8 * dtype.itemsize) // 8)


class StoredTensors:
    """Reads stored tensors of the model in `folder`; every file is looked at once, and opened when it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, SourceFile] = {}

    def read(self, tensor: StoredTensor) -> np.ndarray:
        """Its values in the shape that it has.

        Raises:
            MalformedFile, IncompleteFile: what it says of itself is not so. UnsafePath: its file is not in the folder.
            Others: see `open_member` and `SourceFile.read`.
        """
        size = stored_bytes(tensor)
        if tensor.external is not None:
            data: np.ndarray = self._external(tensor, size)
        elif tensor.raw is not None:
            data = np.frombuffer(tensor.raw, np.uint8)
        else:
            return _typed(tensor)
        if len(data) != size:
            raise MalformedFile(f"tensor {tensor.name!r} needs {size:,} bytes, and has {len(data):,}")
        return _unpacked(data, dtype_of(tensor), tensor.dims)

    def _external(self, tensor: StoredTensor, size: int) -> np.ndarray:
        assert tensor.external is not None
        where = f"tensor {tensor.name!r}"
        strange = sorted(set(tensor.external) - KEYS)
        if strange:
            raise MalformedFile(f"{where}: unknown key {strange[0]!r} of external data")
        file = self._file(where, tensor.external.get("location", ""))
        offset = _number(where, "offset", tensor.external.get("offset", "0"))
        length = _number(where, "length", tensor.external.get("length", str(size)))
        if length != size:
            raise MalformedFile(f"{where} needs {size:,} bytes, and its external data has {length:,}")
        if offset + size > file.size:
            raise IncompleteFile(
                f"{where} lies in bytes {offset:,} to {offset + size:,} of {file.path.name!r}, which has {file.size:,}",
                hint="the download is incomplete; repeat it",
            )
        return file.read(offset, size)

    def _file(self, where: str, name: str) -> SourceFile:
        if name not in self._files:
            if not name or name in (".", "..") or any(c in name for c in "/\\:") or not name.isprintable():
                raise UnsafePath(f"{where}: external file {name!r} is not a bare name within the folder")
            found = open_member(self._folder, name)
            if found.location.stat().st_nlink > 1:
                raise UnsafePath(f"{where}: {name!r} is a hard link to another file", hint="copy the file")
            self._files[name] = found
        return self._files[name]


def _number(where: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise MalformedFile(f"{where}: the {key} {text[:40]!r} of its external data is no number of bytes")
    return int(text)


def _unpacked(data: np.ndarray, dtype: np.dtype, dims: tuple[int, ...]) -> np.ndarray:
    bits = PACKED_BITS.get(dtype)
    if bits is None:
        values: np.ndarray = data.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
    else:
        values = codes(data, bits)[: math.prod(dims)].view(np.int8).astype(dtype)
    return values.reshape(dims)


def codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes of `bits` bits out of uint8, the first in the lowest bits: (..., n) to (..., n * 8 / bits)."""
    if bits == 8:
        return packed
    each = 8 // bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    bytes_apart = np.arange(256, dtype=np.uint8)[:, None] >> shifts & np.uint8((1 << bits) - 1)
    # All codes of a byte are looked up as one number: several times as fast as shifting every one.
    spread: np.ndarray = bytes_apart.view(f"u{each}")[:, 0][packed].view(np.uint8)
    return spread


def _typed(tensor: StoredTensor) -> np.ndarray:
    """Values of the typed fields, which small constants have: floats, doubles or integers, one each."""
    dtype, count = dtype_of(tensor), math.prod(tensor.dims)
    values: np.ndarray
    if dtype == np.float32:
        values = np.array(tensor.floats, np.float32)
    elif dtype == np.float64:
        values = np.frombuffer(tensor.doubles or b"", "<f8")
    elif dtype in PACKED_BITS:
        packed = np.array(tensor.integers, np.int64).astype(np.uint8)
        values = codes(packed, PACKED_BITS[dtype])[:count].view(np.int8).astype(dtype)
    elif dtype in (np.float16, ml_dtypes.bfloat16):  # the bits of each as an integer
        values = np.array(tensor.integers, np.int64).astype(np.uint16).view(dtype)
    else:
        values = np.array(tensor.integers, np.int64).astype(dtype)
    if len(values) != count:
        raise MalformedFile(f"tensor {tensor.name!r} needs {count:,} values, and has {len(values):,}")
    return values.reshape(tensor.dims)

"""The header of a safetensors file: parsed strictly, and written.

    {"NAME": {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {string: string}}

Offsets count from the start of the data. Sorted by offset, the tensors tile the data exactly: no hole, no overlap,
nothing behind the last one. Every rule of the format's page holds (safetensors README and `tensor.rs`); refused as
well is what the reference reader lets pass: repeated names, unknown fields, ranks and names beyond reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.errors import IncompleteFile, MalformedFile, UnsupportedModel
from quantkit.files.json_file import parse_json

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype(np.bool_),
}
UNREAD_DTYPES = frozenset({"C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Of the format, but of no model that quantkit knows."""

MAX_DEPTH = 8
MAX_TENSORS = 1_000_000
MAX_RANK = 8
MAX_DIMENSION = 1 << 48
MAX_NAME_BYTES = 512
MAX_TENSOR_BYTES = (1 << 63) - 1

_FIELDS = ("dtype", "shape", "data_offsets")
_JSON_START = b"{ \t\r\n"


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor and the bytes [begin, end) of the data section that it fills."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor to be written: its name, dtype (one of `DTYPES`) and shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(data: bytes, where: str, available: int) -> list[Extent]:
    """Parse the JSON of a header.

    Args:
        data: the header's bytes, padding included.
        where: the file, for messages.
        available: bytes that follow the header.

    Returns:
        Every tensor, in the order of the data.

    Raises:
        MalformedFile: a rule of the format is broken; names the tensor.
        IncompleteFile: the tensors need more than `available` bytes.
        UnsupportedModel: a dtype of the format that quantkit does not read.
    """
    if data[:1] and data[:1] not in _JSON_START:
        raise MalformedFile(f"{where}: the header begins with byte 0x{data[0]:02x} instead of '{{'")
    header = parse_json(data, f"{where}: the header", depth=MAX_DEPTH)
    _check_metadata(header.pop("__metadata__", {}), where)
    if len(header) > MAX_TENSORS:
        raise MalformedFile(f"{where} holds {len(header):,} tensors; the limit is {MAX_TENSORS:,}")
    extents = [_TensorReader(where, name).extent(info) for name, info in header.items()]
    extents.sort(key=lambda extent: (extent.begin, extent.end))
    _check_tiling(extents, where, available)
    return extents


def header_bytes(tensors: Sequence[TensorEntry], made_for: str = "pt") -> bytes:
    """The JSON for tensors that lie one behind the other in this order, padded with spaces to a multiple of 8.

    made_for: the `format` that the metadata names, whose loaders look for it: "pt", "mlx".
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": made_for}}
    position = 0
    for tensor in tensors:
        if tensor.name in header:
            raise ValueError(f"tensor {tensor.name!r} is planned twice")
        end = position + tensor.nbytes
        header[tensor.name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, dict):
        raise MalformedFile(f"{where}: __metadata__ must be an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise MalformedFile(f"{where}: metadata {key[:80]!r} must be a string, is {str(value)[:40]}")


class _TensorReader:
    """Checks one line of a header by itself; every refusal names file and tensor."""

    def __init__(self, where: str, name: str) -> None:
        self.where = where
        self.name = name

    def extent(self, info: object) -> Extent:
        self._check_name()
        if not isinstance(info, dict):
            raise self._malformed("is not described by an object")
        for field in _FIELDS:
            if field not in info:
                raise self._malformed(f"has no {field}")
        for field in info:
            if field not in _FIELDS:
                raise self._malformed(f"has an unknown field {field[:80]!r}")
        dtype = self._dtype(info["dtype"])
        shape = self._integers("shape", info["shape"], MAX_DIMENSION)
        if len(shape) > MAX_RANK:
            raise self._malformed(f"has {len(shape):,} dimensions; the limit is {MAX_RANK}")
        offsets = self._integers("data_offsets", info["data_offsets"], MAX_TENSOR_BYTES)
        if len(offsets) != 2:
            raise self._malformed(f"has {len(offsets)} data_offsets instead of 2")
        begin, end = offsets
        if end < begin:
            raise self._malformed(f"ends at {end} before it begins at {begin}")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_TENSOR_BYTES:
            raise self._malformed("has a shape of more than 2^63 bytes")
        if size != end - begin:
            spelled = "x".join(map(str, shape)) or "scalar"
            raise self._malformed(f"needs {size:,} bytes ({info['dtype']} {spelled}), has {end - begin:,}")
        return Extent(self.name, dtype, shape, begin, end)

    def _check_name(self) -> None:
        if not self.name:
            raise MalformedFile(f"{self.where}: a tensor has an empty name")
        length = len(self.name.encode())
        if length > MAX_NAME_BYTES:
            raise self._malformed(f"has a name of {length:,} bytes; the limit is {MAX_NAME_BYTES}")
        if not self.name.isprintable() or "/" in self.name or "\\" in self.name or self.name in (".", ".."):
            raise self._malformed("has a control character or a path separator in its name")

    def _dtype(self, value: object) -> np.dtype:
        if isinstance(value, str) and value in DTYPES:
            return DTYPES[value]
        if isinstance(value, str) and value in UNREAD_DTYPES:
            raise UnsupportedModel(
                f"{self.where}: tensor {self.name!r} has dtype {value}, which quantkit does not read"
            )
        raise self._malformed(f"has an unknown dtype {str(value)[:40]!r}")

    def _integers(self, field: str, value: object, limit: int) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise self._malformed(f"has {field} {str(value)[:40]!r} instead of an array")
        for number in value:
            if type(number) is not int or not 0 <= number <= limit:
                raise self._malformed(f"has {str(number)[:40]} in {field}, not an integer from 0 to {limit}")
        return tuple(value)

    def _malformed(self, what: str) -> MalformedFile:
        return MalformedFile(f"{self.where}: tensor {self.name[:80]!r} {what}")


def _check_tiling(extents: Sequence[Extent], where: str, available: int) -> None:
    """The tensors fill [0, available) without hole, overlap or rest."""
    position, previous = 0, ""
    for extent in extents:
        if extent.begin < position:
            overlap = min(position, extent.end) - extent.begin
            raise MalformedFile(f"{where}: tensor {extent.name[:80]!r} overlaps {previous[:80]!r} by {overlap:,} bytes")
        if extent.begin > position:
            gap = extent.begin - position
            raise MalformedFile(f"{where}: {gap:,} unused bytes before tensor {extent.name[:80]!r}")
        position, previous = extent.end, extent.name
    if position > available:
        raise IncompleteFile(
            f"{where}: {position - available:,} bytes are missing at the end, up to tensor {previous[:80]!r}",
            hint="the download is incomplete; repeat it",
        )
    if position < available:
        raise MalformedFile(f"{where}: {available - position:,} bytes behind the last tensor")

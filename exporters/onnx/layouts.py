"""How a weight of N rows and K columns lies in the data file: its parts, and their bytes.

    Dense      the rows as they are                     float [N, K]
    Blocks     MatMulNBits, GatherBlockQuantized        codes uint8 [N, K / B, B * bits / 8]
    Columns    DequantizeLinear along axis 0            codes intX or uintX [K, N]
    Rows       a lookup of standard operators           codes uint8 [N, K * bits / 8]

B is the block, a part of a group; each block has the scale and the zero point of its group. Scales are [N, K / B], of
`Columns` [K / B, N], in the type that the graph computes in. A symmetric weight has no zero points: its codes count
from 2 ** (bits - 1), but for `Columns`, which has them as signed integers. Else they are codes like the weights':
packed row by row in `Blocks`, uintX in `Columns`, a byte each in `Rows`. The first code is in the lowest bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantkit.errors import InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters.onnx.elements import ARRAYS, SIGNED, UINT8, UNSIGNED, Element
from quantkit.files.planned_files import Buffer
from quantkit.tensors.cast import converted
from quantkit.tensors.packing import pack_adjacent_rows, pack_bitstream, unpack_adjacent_rows, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import TensorView, Weight

CODES, SCALES, ZERO_POINTS = ".codes", ".scales", ".zero_points"
"""What is appended to a weight's name."""

Parts = Mapping[str, tuple[Element, tuple[int, ...]]]
"""What is appended to a weight's name, to type and shape of that tensor, in the order in which their bytes follow."""


class Layout(Protocol):
    """One way in which a weight lies; made for one weight."""

    @property
    def parts(self) -> Parts:
        """Its tensors."""
        ...

    def buffers(self, weight: Weight) -> Iterator[Buffer]:
        """The bytes of each part of `weight`, in order; those of one part may come in several buffers."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """Values in `element`; those of a quantized weight are rounded to it."""

    shape: tuple[int, ...]
    element: Element

    @property
    def parts(self) -> Parts:
        """See `Layout`."""
        return {"": (self.element, self.shape)}

    def buffers(self, weight: Weight) -> Iterator[Buffer]:
        """See `Layout`; raises what `converted` does."""
        position = 0
        for chunk in weight.chunks() if isinstance(weight, TensorView) else weight.dequantized_chunks():
            yield converted(weight.name, chunk, ARRAYS[self.element], offset=position)
            position += chunk.size


@dataclass(frozen=True, slots=True)
class Quantized(ABC):
    """What the layouts of quantized weights share. shape: (N, K). block: columns that share a scale in the graph."""

    shape: tuple[int, int]
    scheme: AffineGroups
    block: int
    element: Element

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return self.shape[1] // self.block

    @property
    def per_group(self) -> int:
        """Blocks of a group."""
        return self.blocks // self.scheme.groups(self.shape[1])

    def buffers(self, weight: Weight) -> Iterator[Buffer]:
        """See `Layout`; raises `UnsupportedSpec` for a scale that the graph's type does not hold exactly."""
        assert not isinstance(weight, TensorView), "planned as codes"
        tensor = weight.read()
        yield self.packed(tensor.codes)
        yield self.turned(np.repeat(self._scales(weight.name, tensor), self.per_group, axis=1))
        if not self.scheme.symmetric:
            yield self.packed_zero(np.repeat(tensor.zero, self.per_group, axis=1))

    def _scales(self, name: str, tensor: QuantizedTensor) -> np.ndarray:
        wide = tensor.scale.astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            stored = wide.astype(ARRAYS[self.element])
        if not np.array_equal(stored, wide):
            lost = wide[stored != wide].flat[0]
            raise UnsupportedSpec(
                f"{name}: an ONNX graph of f16 does not hold the scale {lost:g} exactly", hint="choose the type f32"
            )
        return stored

    def tensor(self, name: str, read: Mapping[str, np.ndarray]) -> QuantizedTensor:
        """What lies in the bytes `read` of the parts.

        Raises:
            InconsistentCheckpoint: blocks of a group that differ, or a scale that is none of the scheme's.
        """
        lying = read[SCALES].view(ARRAYS[self.element]).reshape(self.parts[SCALES][1])
        scale = self._grouped(name, self.turned(lying))
        own = SCALE_DTYPES[self.scheme.scale_dtype]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            stored = scale.astype(own)
        if not np.array_equal(stored.astype(np.float32), scale.astype(np.float32)):
            raise InconsistentCheckpoint(f"{name}: a scale is not a number, or none in {self.scheme.scale_dtype}")
        zero = np.full(scale.shape, self.scheme.midpoint, np.uint8)
        if not self.scheme.symmetric:
            zero = self._grouped(name, self.unpacked_zero(read[ZERO_POINTS]))
        try:
            return QuantizedTensor(self.scheme, self.unpacked(read[CODES]), {"scale": stored, "zero": zero})
        except QuantkitError as error:
            raise type(error)(f"{name}: {error}", hint=error.hint) from None

    def _grouped(self, name: str, blocks: np.ndarray) -> np.ndarray:
        groups = blocks.reshape(len(blocks), -1, self.per_group)
        if not (groups == groups[:, :, :1]).all():
            raise InconsistentCheckpoint(f"{name}: blocks of one group have different scales or zero points")
        return np.ascontiguousarray(groups[:, :, 0])

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """See `Layout`."""

    @abstractmethod
    def packed(self, codes: np.ndarray) -> np.ndarray:
        """The bytes of codes (N, K)."""

    @abstractmethod
    def unpacked(self, data: np.ndarray) -> np.ndarray:
        """Inverse of `packed`."""

    @abstractmethod
    def packed_zero(self, zero: np.ndarray) -> np.ndarray:
        """The bytes of zero points (N, blocks)."""

    @abstractmethod
    def unpacked_zero(self, data: np.ndarray) -> np.ndarray:
        """Inverse of `packed_zero`."""

    def turned(self, values: np.ndarray) -> np.ndarray:
        """Scales (N, blocks) as they lie in the file, and back."""
        return values


@dataclass(frozen=True, slots=True)
class Blocks(Quantized):
    """Rows as MatMulNBits takes them, which are those of GatherBlockQuantized, whose shape of codes is [N, -1]."""

    @property
    def parts(self) -> Parts:
        """See `Layout`."""
        rows, bits = self.shape[0], self.scheme.bits
        parts = {
            CODES: (UINT8, (rows, self.blocks, self.block * bits // 8)),
            SCALES: (self.element, (rows, self.blocks)),
        }
        return parts if self.scheme.symmetric else {**parts, ZERO_POINTS: (UINT8, (rows, -(-self.blocks * bits // 8)))}

    def packed(self, codes: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return row_bytes(codes, self.scheme.bits)

    def unpacked(self, data: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return row_codes(data, self.scheme.bits, self.shape)

    def packed_zero(self, zero: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return row_bytes(zero, self.scheme.bits)

    def unpacked_zero(self, data: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return row_codes(data, self.scheme.bits, (self.shape[0], self.blocks))


@dataclass(frozen=True, slots=True)
class Rows(Blocks):
    """Rows of bytes that operators of ONNX look up and take apart."""

    @property
    def parts(self) -> Parts:
        """See `Layout`."""
        rows, cols = self.shape
        parts = {CODES: (UINT8, (rows, cols * self.scheme.bits // 8)), SCALES: (self.element, (rows, self.blocks))}
        return parts if self.scheme.symmetric else {**parts, ZERO_POINTS: (UINT8, (rows, self.blocks))}

    def packed_zero(self, zero: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return zero

    def unpacked_zero(self, data: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return data.reshape(self.shape[0], self.blocks)


@dataclass(frozen=True, slots=True)
class Columns(Quantized):
    """Transposed, as DequantizeLinear along axis 0 takes them; rows are packed one behind the other."""

    @property
    def parts(self) -> Parts:
        """See `Layout`."""
        rows, cols = self.shape
        integers = (SIGNED if self.scheme.symmetric else UNSIGNED)[self.scheme.bits]
        parts = {CODES: (integers, (cols, rows)), SCALES: (self.element, (self.blocks, rows))}
        return parts if self.scheme.symmetric else {**parts, ZERO_POINTS: (integers, (self.blocks, rows))}

    def packed(self, codes: np.ndarray) -> np.ndarray:
        """See `Quantized`; a signed code is the other with its highest bit turned over."""
        return column_bytes(codes ^ self._sign, self.scheme.bits)

    def unpacked(self, data: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        codes: np.ndarray = column_codes(data, self.scheme.bits, self.shape) ^ self._sign
        return codes

    @property
    def _sign(self) -> np.uint8:
        sign: np.uint8 = np.uint8(self.scheme.midpoint if self.scheme.symmetric else 0)
        return sign

    def packed_zero(self, zero: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return column_bytes(zero, self.scheme.bits)

    def unpacked_zero(self, data: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return column_codes(data, self.scheme.bits, (self.shape[0], self.blocks))

    def turned(self, values: np.ndarray) -> np.ndarray:
        """See `Quantized`."""
        return np.ascontiguousarray(values.T)


def row_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, n) packed row by row: uint8 (rows, ceil(n * bits / 8))."""
    if bits == 8:
        return codes
    count = codes.shape[1] * bits
    words = pack_bitstream(codes, bits).astype("<u4", copy=False)
    return np.ascontiguousarray(words.view(np.uint8)[:, : -(-count // 8)])


def row_codes(data: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `row_bytes`: uint8 codes of `shape`."""
    rows, count = shape
    if bits == 8:
        return data.reshape(shape)
    words = data.reshape(rows, -1)
    if words.shape[1] % 4:
        words = np.pad(words, ((0, 0), (0, -words.shape[1] % 4)))
    return unpack_bitstream(words.view("<u4"), bits, count)


def column_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (n, k) transposed, and then packed as a single row.

    Where the rows fill words, those are made before anything is transposed: a small part of the time of single codes.
    """
    if len(codes) % (32 // bits):
        return row_bytes(np.ascontiguousarray(codes.T).reshape(1, -1), bits)
    words = pack_adjacent_rows(codes, bits).astype("<u4", copy=False)
    return np.ascontiguousarray(words.T).view(np.uint8)


def column_codes(data: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `column_bytes`: uint8 codes of `shape`."""
    rows, count = shape
    if rows % (32 // bits):
        flat = row_codes(data, bits, (1, count * rows))
        return np.ascontiguousarray(flat.reshape(count, rows).T)
    words = np.ascontiguousarray(data.view("<u4").reshape(count, -1).T).astype(np.uint32, copy=False)
    return unpack_adjacent_rows(words, bits)

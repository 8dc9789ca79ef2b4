"""How a weight lies in openvino_model.bin, and the nodes that make a float32 matrix of it.

    dense      element_type f16, bf16 or f32, as it is; Const -> Convert (marked "decompression") unless f32
    quantized  codes [N, G, g], scales [N, G, 1], and with zero points those, [N, G, 1]; without the axis of G for one
               group per row:  Const -> Convert f32 [-> Subtract(Convert(zero))] -> Multiply(scale) -> Reshape [N, K]

    codes      bits  element  zero point
    symmetric  2     u2       the number 2, or 1 of ternary codes, as one u8
    symmetric  4, 8  i4, i8   none: the code less 8 or 128, two's complement
    others     2..8  u2 u4 u8 one per group, of the same type

Elements of less than a byte follow each other from the lowest bits on, rows without padding, the tensor padded to a
byte. Scales are in their own dtype. Source: nncf 3.4, module `weight_lowering`; OpenVINO 2026.4,
`compressed_weights_pattern.hpp`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.openvino.graph import Graph, Shape, Value, aligned
from quantkit.files.planned_files import Buffer
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups

BITS = {"u2": 2, "i4": 4, "u4": 4, "i8": 8, "u8": 8}
WIDTHS = (2, 4, 8)
SCALES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
"""Scale dtype of a scheme to element type."""
ZERO, SCALE = "/zero_point", "/scale"
"""What follows a weight's name in the names of the constants beside its codes."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a weight: what follows its name, element type and shape."""

    suffix: str
    element: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes in the .bin."""
        return tensor_bytes(self.element, self.shape)


@dataclass(frozen=True, slots=True)
class Stored:
    """How one weight lies there. scheme: of a quantized one; None = dense. element: of its values or codes."""

    name: str
    shape: Shape
    element: str
    scheme: AffineGroups | None = None

    @property
    def grouped(self) -> Shape:
        """Shape of the codes."""
        assert self.scheme is not None
        rows, cols = self.shape
        if self.scheme.group_size in (PER_ROW, cols):
            return (rows, cols)
        return (rows, self.scheme.groups(cols, name=self.name), self.scheme.group_size)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What lies in the .bin, in order."""
        if self.scheme is None:
            return (Part("", self.element, self.shape),)
        per_group = (*self.grouped[:-1], 1)
        zeros: tuple[Part, ...] = ()
        if not self.scheme.symmetric:
            zeros = (Part(ZERO, self.element, per_group),)
        elif self.element[0] == "u":
            zeros = (Part(ZERO, "u8", ()),)
        scales = Part(SCALE, SCALES[self.scheme.scale_dtype], per_group)
        return (Part("", self.element, self.grouped), *zeros, scales)


def tensor_bytes(element: str, shape: Shape) -> int:
    """Bytes of a constant; less than a byte an element is padded to a whole one at the end."""
    bits = BITS.get(element) or 8 * _width(element)
    return -(-math.prod(shape) * bits // 8)


def _width(element: str) -> int:
    return FLOATS[element].itemsize if element in FLOATS else np.dtype(element[0] + str(int(element[1:]) // 8)).itemsize


def element_of(scheme: AffineGroups) -> str:
    """The element type of codes of 2, 4 or 8 bits."""
    return f"{'i' if scheme.symmetric and scheme.bits > 2 else 'u'}{scheme.bits}"


def buffers(stored: Stored, tensor: QuantizedTensor) -> Iterator[Buffer]:
    """The bytes of a quantized weight's parts, each as one buffer."""
    scheme = stored.scheme
    assert scheme is not None
    if stored.element[0] == "i":  # two's complement: the code less the midpoint, modulo 2**bits
        yield _packed(tensor.codes ^ np.uint8(scheme.midpoint), scheme.bits)
    else:
        yield _packed(tensor.codes, scheme.bits)
    if not scheme.symmetric:
        yield _packed(tensor.zero, scheme.bits)
    elif stored.element[0] == "u":
        yield bytes([scheme.midpoint])
    yield np.ascontiguousarray(tensor.scale)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return np.ascontiguousarray(codes).reshape(-1)
    flat = np.ascontiguousarray(codes).reshape(1, -1)
    size = -(-flat.size * bits // 8)
    return pack_bitstream(flat, bits).astype("<u4", copy=False).view(np.uint8).reshape(-1)[:size]


def unpacked(data: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of the packing: bytes to uint8 (rows, n)."""
    count = math.prod(shape)
    if bits == 8:
        return data.reshape(shape)
    words = np.zeros(-(-count * bits // 32), "<u4")
    words.view(np.uint8)[: data.size] = data
    return unpack_bitstream(words[None], bits, count).reshape(shape)


def tensor_of(stored: Stored, parts: dict[str, np.ndarray]) -> QuantizedTensor:
    """The codes and scales in the bytes of a quantized weight's parts, by suffix; raises as `QuantizedTensor`."""
    scheme = stored.scheme
    assert scheme is not None
    rows, cols = stored.shape
    groups = scheme.groups(cols, name=stored.name)
    codes = unpacked(parts[""], scheme.bits, (rows, cols))
    if stored.element[0] == "i":
        codes = codes ^ np.uint8(scheme.midpoint)
    zero = np.full((rows, groups), scheme.midpoint, np.uint8)
    if not scheme.symmetric:
        zero = unpacked(parts[ZERO], scheme.bits, (rows, groups))
    dtype, _ = scheme.parameters(rows, cols)["scale"]
    return QuantizedTensor(scheme, codes, {"scale": parts[SCALE].view(dtype).reshape(rows, groups), "zero": zero})


def matrix(graph: Graph, stored: Stored, offset: int) -> Value:
    """The nodes that make float32 of a weight, whose parts begin at `offset` of the .bin, each aligned."""
    values = {}
    for part, place in zip(stored.parts, places(stored, offset), strict=True):
        name = stored.name + part.suffix
        values[part.suffix] = graph.stored(name, part.element, part.shape, offset=place, size=part.nbytes)
    if stored.scheme is None:
        return _float32(graph, stored.name, values[""], mark=True)
    levels = _float32(graph, stored.name, values[""])
    if ZERO in values:
        zero = _float32(graph, stored.name + ZERO, values[ZERO])
        levels = _two(graph, f"{stored.name}/Subtract", "Subtract", levels, zero)
    scale = _float32(graph, stored.name + SCALE, values[SCALE])
    product = _two(graph, f"{stored.name}/Multiply", "Multiply", levels, scale)
    if product.shape == stored.shape:
        return product
    inputs = (product, graph.integers(*stored.shape))
    return graph.add(f"{stored.name}/Reshape", "Reshape", inputs, ("f32", stored.shape), special_zero=False)


def places(stored: Stored, offset: int) -> Iterator[int]:
    """Where the parts of a weight begin that begins at `offset`."""
    for part in stored.parts:
        yield offset
        offset += aligned(part.nbytes)


def _float32(graph: Graph, name: str, value: Value, *, mark: bool = False) -> Value:
    if value.element == "f32":
        return value
    marked = "decompression" if mark else ""
    return graph.add(
        f"{name}/Convert", "Convert", (value,), ("f32", value.shape), marked=marked, destination_type="f32"
    )


def _two(graph: Graph, name: str, type_: str, left: Value, right: Value) -> Value:
    return graph.add(name, type_, (left, right), ("f32", left.shape), auto_broadcast="numpy")

"""Operators on quantized weights: value = (code - zero point) * scale, a scale for every run of an axis.

Sources: ONNX's `DequantizeLinear`, and the contrib operators of ONNX Runtime. Codes of 2 and 4 bits in uint8 lie with
the first in the lowest bits, zero points likewise along the groups of a row.
"""

from __future__ import annotations

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.runtimes.onnx_numpy.call import Call, Operators, allow, axis_of
from quantkit.runtimes.onnx_numpy.reductions import widened
from quantkit.runtimes.onnx_numpy.shapes import check_indices
from quantkit.runtimes.onnx_numpy.stored_tensors import PACKED_BITS, codes

ROWS = 1024
"""Of a quantized matrix that are dequantized at a time."""
UINT8 = np.dtype(np.uint8)
FLOAT32 = np.dtype(np.float32)


def _dequantized(call: Call) -> list[np.ndarray]:
    """`DequantizeLinear`: one scale, one for each place of an axis, or one for each `block_size` places of it."""
    value, scale, zero = call.value(0), call.value(1), call.optional(2)
    call.attribute("output_dtype")
    block, axis = call.integer("block_size", 0), call.integer("axis", 1)
    allow(value.shape, FLOAT32)
    shifted = widened(value.astype(np.float32))
    if zero is not None:
        if zero.shape != scale.shape or zero.dtype != value.dtype:
            raise MalformedFile(f"its zero points are {zero.dtype} {list(zero.shape)}, its scales {list(scale.shape)}")
        shifted = shifted - _spread(zero.astype(np.float32), value, block, axis)
    return [(shifted * _spread(widened(scale), value, block, axis)).astype(scale.dtype, copy=False)]


def _spread(parameter: np.ndarray, value: np.ndarray, block: int, axis: int) -> np.ndarray:
    """A parameter of `DequantizeLinear` for every element of `value`, or to be broadcast to it."""
    if parameter.size == 1 and not block:
        return parameter.reshape(())
    axis = axis_of(axis, value.ndim)
    if not block:
        if parameter.shape != value.shape[axis : axis + 1]:
            raise MalformedFile(f"{list(parameter.shape)} scales for an axis of {value.shape[axis]}")
        return parameter.reshape(-1, *(1,) * (value.ndim - axis - 1))
    wanted = [*value.shape]
    wanted[axis] = -(-wanted[axis] // block) if block > 0 else -1
    if list(parameter.shape) != wanted:
        raise MalformedFile(f"scales of {list(parameter.shape)} where blocks of {block} need {wanted}")
    repeated = np.repeat(parameter, block, axis)
    return repeated[(slice(None),) * axis + (slice(value.shape[axis]),)]


def _bits(call: Call) -> int:
    bits = call.integer("bits", 4)
    if bits not in (2, 4, 8):
        raise MalformedFile(f"it has codes of {bits} bits")
    return bits


def _block(call: Call) -> int:
    block = call.integer("block_size", 128)
    if block < 16 or block & block - 1:
        raise MalformedFile(f"it has blocks of {block}")
    return block


def _matmul_nbits(call: Call) -> list[np.ndarray]:
    """A (..., K) times the transpose of W (N, K), in float32; `accuracy_level` is what an engine may lose."""
    for name in ("accuracy_level", "weight_prepacked"):
        if call.integer(name, 0) and name == "weight_prepacked":
            raise MalformedFile("its weights are packed for another device")
    bits, block, N, K = _bits(call), _block(call), call.integer("N"), call.integer("K")
    A, B, scales, bias = call.value(0), call.value(1), call.value(2), call.optional(5)
    blocks = -(-K // block)
    if N < 1 or K < 1 or B.shape != (N, blocks, block * bits // 8) or B.dtype != UINT8:
        raise MalformedFile(
            f"its codes are {B.dtype} {list(B.shape)} for {N} x {K} of {bits} bits in blocks of {block}"
        )
    if scales.size != N * blocks or scales.dtype != A.dtype or not A.ndim or A.shape[-1] != K:
        raise MalformedFile(f"its scales are {scales.dtype} {list(scales.shape)}, its input {A.dtype} {list(A.shape)}")
    if bias is not None and bias.shape != (N,):
        raise MalformedFile(f"its bias has the shape {list(bias.shape)}")
    scales, zeros = scales.reshape(N, blocks), _zero_points(call.optional(3), N, blocks, bits, A.dtype)
    rows = widened(A).reshape(-1, K)
    allow((len(rows), N), FLOAT32)
    found = np.empty((len(rows), N), np.float32)
    for start in range(0, N, ROWS):
        part = slice(start, start + ROWS)
        levels = codes(B[part], bits).astype(np.float32) - zeros[part, :, None]
        weights = (levels * widened(scales[part])[..., None]).reshape(-1, blocks * block)[:, :K]
        np.matmul(rows, weights.T, out=found[:, part])
    if bias is not None:
        found += widened(bias)
    return [found.astype(A.dtype, copy=False).reshape(*A.shape[:-1], N)]


def _zero_points(given: np.ndarray | None, N: int, blocks: int, bits: int, floats: np.dtype) -> np.ndarray:
    """Float32 (N, blocks): packed like the codes, as floats, or the middle of the codes."""
    if given is None:
        return np.full((N, blocks), 1 << bits - 1, np.float32)
    if given.dtype == floats and given.size == N * blocks:
        return widened(given).reshape(N, blocks)
    packed = -(-blocks * bits // 8)
    if given.dtype != UINT8 or given.size != N * packed:
        raise MalformedFile(f"its zero points are {given.dtype} {list(given.shape)}")
    return codes(given.reshape(N, packed), bits)[:, :blocks].astype(np.float32)


def _gather_block_quantized(call: Call) -> list[np.ndarray]:
    """Rows of a quantized table by their numbers: `Gather`, then dequantized along the last axis.

    Codes of uint8 have the middle of their range for zero point where none is given, those of narrower dtypes 0.
    """
    data, indices, scales, zeros = call.value(0), call.value(1), call.value(2), call.optional(3)
    bits, block = _bits(call), _block(call)
    if (
        data.ndim != 2
        or axis_of(call.integer("gather_axis", 0), 2)
        or axis_of(call.integer("quantize_axis", 1), 2) != 1
    ):
        raise MalformedFile(
            f"it gathers from {list(data.shape)} otherwise than rows that are quantized along themselves"
        )
    check_indices(indices, len(data))
    narrow = data.dtype in PACKED_BITS
    if not narrow and data.dtype != UINT8:
        raise MalformedFile(f"its codes are {data.dtype}")
    cols = data.shape[1] if narrow else data.shape[1] * 8 // bits
    blocks = -(-cols // block)
    if scales.shape != (len(data), blocks):
        raise MalformedFile(f"its scales are {list(scales.shape)} for {len(data)} rows of {cols}")
    allow((*indices.shape, cols), FLOAT32)
    found = _levels(data, indices, bits).astype(np.float32)
    found -= np.repeat(_row_zeros(zeros, data, indices, bits, blocks), block, -1)[..., :cols]
    found *= np.repeat(widened(scales[indices]), block, -1)[..., :cols]
    return [found.astype(scales.dtype, copy=False)]


def _levels(table: np.ndarray, indices: np.ndarray, bits: int) -> np.ndarray:
    rows = table[indices]
    return rows if table.dtype in PACKED_BITS else codes(rows, bits)


def _row_zeros(zeros: np.ndarray | None, data: np.ndarray, indices: np.ndarray, bits: int, blocks: int) -> np.ndarray:
    """Zero points of the blocks of the rows that are gathered, float32 (..., blocks)."""
    narrow = data.dtype in PACKED_BITS
    if zeros is None:
        return np.full((*indices.shape, blocks), 0 if narrow else 1 << bits - 1, np.float32)
    stored = blocks if narrow else -(-blocks * bits // 8)
    if zeros.dtype != data.dtype or zeros.shape != (len(data), stored):
        raise MalformedFile(f"its zero points are {zeros.dtype} {list(zeros.shape)}")
    return _levels(zeros, indices, bits)[..., :blocks].astype(np.float32)


QUANTIZED: Operators = {
    ("", "DequantizeLinear"): _dequantized,
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
    ("com.microsoft", "GatherBlockQuantized"): _gather_block_quantized,
}

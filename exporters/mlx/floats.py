"""MLX's modes of floating-point codes, mxfp4 and nvfp4, as integer codes: exactly, or not at all.

    P.weight   uint32 [N, K/8]   eight codes of 4 bits a word, lowest first; bit 3 of a code is its sign, and its other
                                 bits say 0, 0.5, 1, 1.5, 2, 3, 4 or 6 (E2M1)
    P.scales   uint8 [N, K/g]    mxfp4, g = 32: 2^(byte - 127) (E8M0); nvfp4, g = 16: a float of 8 bits (E4M3)

Twice such a value is an integer from -12 to 12, so that all of them are codes of 5 bits with half the scale. The other
way round integer codes are such floats only where their levels and scales happen to be these; nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from quantkit.errors import NonFiniteValues, UnsupportedSpec
from quantkit.exporters._hf_folder import Shapes
from quantkit.exporters.mlx.affine import SCALES, WEIGHT, WORD, split
from quantkit.exporters.mlx.settings import FLOAT_MODES, Stored
from quantkit.files.planned_files import Buffer
from quantkit.files.safetensors_header import DTYPES
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView

BYTE = np.dtype("u1")
DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12)
"""Twice the value of a code without its sign."""
BITS = 5
MIDPOINT = 16
LEVELS = np.array([MIDPOINT + sign * level for sign in (1, -1) for level in DOUBLED], np.uint8)
"""The integer code of every floating-point one."""
CODES = np.array(
    [next((code for code, level in enumerate(LEVELS) if level == value), 255) for value in range(2 * MIDPOINT)],
    np.uint8,
)
"""The floating-point code of every integer one; 255 where there is none."""


def stored(mode: str) -> Stored:
    """How codes of this mode lie there."""
    return Stored(*FLOAT_MODES[mode], mode)


def fitting(view: QuantizedView, mode: str) -> QuantizedView:
    """`view` in the integer codes and groups that `mode` is read as.

    What was read as such fits; of anything else the codes tell, which are read here.

    Raises:
        UnsupportedSpec: no integer zero points, groups that are no whole ones of the mode, or see `packed`.
    """
    scheme, group = view.scheme, FLOAT_MODES[mode][1]
    if not isinstance(scheme, AffineGroups) or scheme.group_width(view.shape[1]) % group:
        raise _refused(view.name, mode, f"groups of {group} columns and integer levels, not {scheme}")
    whole = split(view, group)
    wide = AffineGroups(bits=BITS, group_size=group, scale_dtype="float32")
    fits = replace(whole, scheme=wide, read=lambda: _integers(view.name, whole.read(), wide, mode), stored_as=mode)
    if view.stored_as != mode:
        for _ in packed(view.name, fits.read(), mode):
            pass
    return fits


def _integers(name: str, tensor: QuantizedTensor, wide: AffineGroups, mode: str) -> QuantizedTensor:
    """`tensor` on the scheme `wide`, which has positive scales here."""
    scale = tensor.scale.astype(np.float32)
    width = tensor.shape[1] // scale.shape[1]
    zero, sign = (np.repeat(x, width, axis=1) for x in (tensor.zero.astype(np.int16), np.where(scale < 0, -1, 1)))
    levels = (tensor.codes - zero) * sign
    if levels.size and np.abs(levels).max() > max(DOUBLED):
        raise _refused(name, mode, f"levels of up to {max(DOUBLED)} half steps")
    arrays = {"scale": np.abs(scale), "zero": np.full(scale.shape, MIDPOINT, np.uint8)}
    return QuantizedTensor(wide, (levels + MIDPOINT).astype(np.uint8), arrays)


def packed(name: str, tensor: QuantizedTensor, mode: str) -> Iterator[Buffer]:
    """The buffers of a fitting weight, in the order of `parts`.

    Raises:
        UnsupportedSpec: a level or a scale that the mode does not have.
    """
    codes, scale = CODES[tensor.codes], tensor.scale * 2
    if (codes == 255).any():
        raise _refused(name, mode, "levels of 0, 1, 2, 3, 4, 6, 8 and 12 half steps only")
    if mode == "mxfp4":
        used = np.where(scale == 0, 1, scale)  # whose codes are all zero, or it was no weight of this mode
        mantissa, exponent = np.frexp(used)
        wrong = (mantissa != 0.5) | (exponent < -126) | (exponent > 127) | ((scale == 0) & _any_level(tensor))
        stored_scale = (exponent - 1 + 127).astype(BYTE)
    else:
        with np.errstate(over="ignore"):
            bytes_of = scale.astype(DTYPES["F8_E4M3"])
        wrong = bytes_of.astype(np.float32) != scale
        stored_scale = bytes_of.view(BYTE)
    if wrong.any():
        raise _refused(name, mode, f"other scales than {float(scale[wrong][0]):g} of a whole step")
    yield pack_bitstream(codes, FLOAT_MODES[mode][0])
    yield np.ascontiguousarray(stored_scale)


def _any_level(tensor: QuantizedTensor) -> np.ndarray:
    """Of every group whether a code of it is not zero."""
    found: np.ndarray = (tensor.codes != MIDPOINT).reshape(*tensor.scale.shape, -1).any(axis=-1)
    return found


def _refused(name: str, mode: str, has: str) -> UnsupportedSpec:
    return UnsupportedSpec(
        f"{name}: mlx's {mode} has {has}", hint="leave the type out, and codes are stored as they are"
    )


def parts(shape: tuple[int, int], how: Stored) -> Shapes:
    """The tensors of a weight of `shape`."""
    rows, cols = shape
    return {WEIGHT: (WORD, (rows, cols * how.bits // 32)), SCALES: (BYTE, (rows, cols // how.group_size))}


def read_view(name: str, shape: tuple[int, int], how: Stored, tensors: Mapping[str, TensorView]) -> QuantizedView:
    """The weight that the checked parts `tensors` hold."""
    scheme = AffineGroups(bits=BITS, group_size=how.group_size, scale_dtype="float32")

    def read() -> QuantizedTensor:
        codes = unpack_bitstream(tensors[WEIGHT].read(), how.bits, shape[1])
        scale = _scales(name, tensors[SCALES].read(), how.mode)
        zero = np.full(scale.shape, MIDPOINT, np.uint8)
        return QuantizedTensor(scheme, LEVELS[codes], {"scale": scale, "zero": zero})

    return QuantizedView(name, shape, scheme, read, stored_as=how.mode)


def _scales(name: str, stored: np.ndarray, mode: str) -> np.ndarray:
    """Half of what the bytes say, float32."""
    if mode == "mxfp4":
        halves = np.ldexp(np.float32(1), stored.astype(np.int32) - 128)
        bad = stored == 255
    else:
        halves = stored.view(DTYPES["F8_E4M3"]).astype(np.float32) / 2
        bad = ~np.isfinite(halves)
    if bad.any():
        raise NonFiniteValues(f"{name}: a quantization scale is NaN")
    scales: np.ndarray = halves.astype(np.float32)
    return scales

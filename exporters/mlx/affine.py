"""One weight as MLX stores it: affine codes, with a scale and a bias for every group.

    P.weight   uint32 [N, K*b/32]   a row is one bitstream, code i at bit i*b, lowest bit first
    P.scales   float [N, K/g]
    P.biases   float [N, K/g]       weight = scale * code + bias

A scale s and an integer zero point z are the bias -s * z. For symmetric codes z is a power of two, and the product has
the significant bits of s: exact in its dtype. Other zero points make it longer than float16 or bfloat16; in float32
both are exact. What is read is what MLX computes with: where every bias of a weight is such a product, they are integer
zero points again (and scales in float32 that float16 or bfloat16 holds are in it again); else a stored offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import QuantkitError, UnsupportedSpec, ValueOutOfRange
from quantkit.exporters._hf_folder import Shapes
from quantkit.exporters.mlx.settings import BITS, GROUP_SIZES, Stored
from quantkit.files.planned_files import Buffer
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.tensors.widening import wider_view

WEIGHT, SCALES, BIASES = "weight", "scales", "biases"
WORD, FLOAT16, FLOAT32 = np.dtype("<u4"), np.dtype("<f2"), np.dtype("<f4")
NARROWEST = 2
"""Bits of the narrowest scheme: codes of one bit are read as codes of two."""
WIDEST = max(BITS)


def fitting(view: QuantizedView) -> QuantizedView:
    """`view` in a width and groups that MLX has, the numbers the same; `view` itself where it is.

    Seven bits become eight, and groups that are a multiple of one of MLX's are split, each part with the same scale.

    Raises:
        UnsupportedSpec: groups that no group of MLX divides, or a scheme that is no scale and offset per group.
    """
    scheme = view.scheme
    if not isinstance(scheme, (AffineGroups, OffsetGroups)):
        raise UnsupportedSpec(
            f"{view.name}: mlx holds codes with a scale and a bias per group, not {scheme}",
            hint="export gguf, or dense weights with `export hf`",
        )
    width = scheme.group_width(view.shape[1])
    group = next((size for size in GROUP_SIZES if width % size == 0), None)
    if group is None:
        raise UnsupportedSpec(
            f"{view.name}: mlx has groups of 32, 64 and 128 columns, of which none divides {scheme} of {width} columns",
            hint="quantize with groups of 32, 64 or 128; or choose compressed-tensors",
        )
    if scheme.bits not in BITS:
        view = wider_view(view, WIDEST)
    return split(view, group)


def split(view: QuantizedView, group: int) -> QuantizedView:
    """`view` in groups of `group` columns, a divisor of its own; the numbers are the same."""
    if group == view.scheme.group_size:
        return view
    scheme = view.scheme.with_settings(group_size=group)
    times = view.scheme.group_width(view.shape[1]) // group

    def read() -> QuantizedTensor:
        tensor = view.read()
        arrays = {name: np.repeat(values, times, axis=1) for name, values in tensor.arrays.items()}
        return QuantizedTensor(scheme, tensor.codes, arrays)

    return replace(view, scheme=scheme, read=read)


def stored(scheme: Scheme) -> Stored:
    """How codes of a fitting scheme lie there."""
    return Stored(scheme.bits, scheme.group_size)


def parameter_dtype(scheme: Scheme, *, halves: bool) -> np.dtype:
    """That of scales and biases: float16 with `halves`, else one that holds both exactly."""
    if halves:
        return FLOAT16
    if isinstance(scheme, AffineGroups) and not scheme.symmetric:
        return FLOAT32
    return SCALE_DTYPES[scheme.scale_dtype]


def parts(shape: tuple[int, int], how: Stored, dtypes: tuple[np.dtype, np.dtype]) -> Shapes:
    """The tensors of a weight of `shape`; dtypes: of scales and biases."""
    rows, cols = shape
    groups = (rows, cols // how.group_size)
    return {WEIGHT: (WORD, (rows, cols * how.bits // 32)), SCALES: (dtypes[0], groups), BIASES: (dtypes[1], groups)}


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The buffers of a weight in the order of `parts`; moved: by how many steps at most a weight of it moved."""

    buffers: tuple[Buffer, ...]
    moved: float


def packed(name: str, tensor: QuantizedTensor, dtype: np.dtype) -> Packed:
    """Codes as they are, scales exactly, biases rounded to `dtype` where it does not hold them.

    Raises:
        UnsupportedSpec: a scale that `dtype` does not hold exactly.
        ValueOutOfRange: a bias beyond the largest number of `dtype`.
    """
    scale, offset = tensor.scheme.effective(tensor.arrays)
    with np.errstate(over="ignore", under="ignore"):
        scales, biases = scale.astype(dtype), offset.astype(dtype)
    lost = scales.astype(np.float32) != scale
    if lost.any():
        raise UnsupportedSpec(
            f"{name}: {dtype} scales cannot hold {float(scale[lost][0]):g} exactly; mlx has them so by type affine-f16",
            hint="leave the type out, and scales keep their own dtype",
        )
    if not np.isfinite(biases.astype(np.float32)).all():
        raise ValueOutOfRange(f"{name}: a scale times its zero point exceeds the largest {dtype}")
    distance = np.abs(biases.astype(np.float64) - offset)
    steps = np.divide(distance, np.abs(scale), out=np.zeros_like(distance), where=scale != 0)
    codes = pack_bitstream(tensor.codes, tensor.scheme.bits)
    return Packed((codes, np.ascontiguousarray(scales), np.ascontiguousarray(biases)), float(steps.max(initial=0.0)))


def read_view(name: str, shape: tuple[int, int], how: Stored, tensors: Mapping[str, TensorView]) -> QuantizedView:
    """The weight that the checked parts `tensors` hold; scales and biases are read here, to tell what they are."""
    scheme = _scheme(how, tensors[SCALES], tensors[BIASES])
    return QuantizedView(name, shape, scheme, lambda: _tensor(name, scheme, how.bits, tensors))


def _scheme(how: Stored, scales: TensorView, biases: TensorView) -> AffineGroups | OffsetGroups:
    bits = max(NARROWEST, how.bits)
    fits = {FLOAT16: True, SCALE_DTYPES["bfloat16"]: True}
    symmetric, alike = True, scales.dtype == biases.dtype
    for scale, offset in _chunks(scales, biases):
        zero = zero_points(scale, offset, 2**bits)
        if zero is None:
            dtype = _name(scales.dtype if alike else FLOAT32)
            return OffsetGroups(bits=bits, group_size=how.group_size, scale_dtype=dtype)
        symmetric = symmetric and bool((zero == 2 ** (bits - 1)).all())
        fits = {dtype: fit and _holds(dtype, scale) for dtype, fit in fits.items()}
    narrow = None if symmetric or scales.dtype != FLOAT32 else next((dtype for dtype, fit in fits.items() if fit), None)
    dtype = _name(scales.dtype if narrow is None else narrow)
    return AffineGroups(bits=bits, group_size=how.group_size, symmetric=symmetric, scale_dtype=dtype)


def _chunks(scales: TensorView, biases: TensorView) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scales and biases in float32, some rows at a time."""
    for scale, bias in zip(scales.chunks(), biases.chunks(), strict=True):
        with np.errstate(over="ignore"):
            yield scale.astype(np.float32), bias.astype(np.float32)


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    """Whether `dtype` has every one of the float32 values."""
    with np.errstate(over="ignore", under="ignore"):
        return bool((values.astype(dtype).astype(np.float32) == values).all())


def _name(dtype: np.dtype) -> str:
    return next(name for name, known in SCALE_DTYPES.items() if known == dtype)


def zero_points(scale: np.ndarray, offset: np.ndarray, levels: int) -> np.ndarray | None:
    """The codes below `levels` of which all float32 offsets are -scale * code, uint8; None where one is none.

    A group whose scale is 0 has the middle one.
    """
    with np.errstate(all="ignore"):
        codes = np.rint(-offset / scale)
        codes[scale == 0] = levels // 2
        fits = (codes >= 0) & (codes < levels) & (scale * -codes == offset)
    return codes.astype(np.uint8) if fits.all() else None


def _tensor(
    name: str, scheme: AffineGroups | OffsetGroups, bits: int, tensors: Mapping[str, TensorView]
) -> QuantizedTensor:
    codes = unpack_bitstream(tensors[WEIGHT].read(), bits, tensors[WEIGHT].shape[1] * 32 // bits)
    scale, offset = tensors[SCALES].read(), tensors[BIASES].read()
    dtype = SCALE_DTYPES[scheme.scale_dtype]
    arrays = {"scale": scale.astype(dtype), "offset": offset.astype(dtype)}
    if isinstance(scheme, AffineGroups):
        zero = zero_points(scale.astype(np.float32), offset.astype(np.float32), 2**scheme.bits)
        if zero is None:
            raise UnsupportedSpec(f"{name}: its biases changed while it was read")
        arrays = {"scale": arrays["scale"], "zero": zero}
    try:
        return QuantizedTensor(scheme, codes, arrays)
    except QuantkitError as error:
        raise type(error)(f"{name}: {error}", hint=error.hint) from None

"""MLX's modes of floating-point codes, mxfp4 and nvfp4: read, exactly, as integer codes.

    P.weight   uint32 [N, K/8]   eight codes of 4 bits a word, lowest first; bit 3 of a code is its sign, and its other
                                 bits say 0, 0.5, 1, 1.5, 2, 3, 4 or 6 (E2M1)
    P.scales   uint8 [N, K/g]    mxfp4, g = 32: 2^(byte - 127) (E8M0); nvfp4, g = 16: a float of 8 bits (E4M3)

Twice such a value is an integer from -12 to 12, so that all of them are codes of 5 bits with half the scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.errors import NonFiniteValues
from quantkit.exporters._hf_folder import Shapes
from quantkit.exporters.mlx.affine import SCALES, WEIGHT, WORD
from quantkit.exporters.mlx.settings import Stored
from quantkit.files.safetensors_header import DTYPES
from quantkit.tensors.packing import unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView

BYTE = np.dtype("u1")
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12])
"""Twice the value of a code without its sign."""
BITS = 5


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
        table = (scheme.midpoint + np.concatenate((DOUBLED, -DOUBLED))).astype(np.uint8)
        zero = np.full(scale.shape, scheme.midpoint, np.uint8)
        return QuantizedTensor(scheme, table[codes], {"scale": scale, "zero": zero})

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

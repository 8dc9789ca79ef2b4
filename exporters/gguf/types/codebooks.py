"""Types whose four-bit codes stand in a table of levels.

    IQ4_NL 32   d, codes[16]                                      value = d * level
    IQ4_XS 256  d, high[2], low[4], codes[128]                    value = d * (s - 32) * level, of 32 weights
    MXFP4  32   e, codes[16]                                      value = 2 ** (e - 128) * level

The code of weight l of 32 lies in the low half of byte l, or of l - 16 in the high one. IQ4_XS's eight scales of six
bits are nibbles in `low`, two a byte, and pairs of bits in the little-endian word `high`. MXFP4's levels are E2M1's,
doubled, so that its scale is half of what E8M0 stands for. Source: `ggml-common.h` and `dequantize_row_*` of
`ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.types.parts import Layout, Parts, half_bytes, halves
from quantkit.tensors import packing as bits
from quantkit.tensors.level_tables import TABLES

RUN = 32
"""Weights that share a scale."""

IQ4_NL = BlockType("IQ4_NL", 20, RUN, 18)
IQ4_XS = BlockType("IQ4_XS", 23, 256, 136)
MXFP4 = BlockType("MXFP4", 39, RUN, 17)

IQ4_LEVELS, MXFP4_LEVELS = TABLES["iq4-nl"], TABLES["fp4"]


def half_powers(exponents: np.ndarray) -> np.ndarray:
    """2 ** (e - 128) of uint8 e, float32: half of what E8M0 stands for."""
    wide = exponents.astype(np.uint32)
    patterns = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - np.uint32(1)) << np.uint32(23))
    powers: np.ndarray = patterns.astype(np.uint32).view(np.float32)
    return powers


def _pack_codes(codes: np.ndarray) -> np.ndarray:
    n = len(codes)
    return bits.pack_nibble_halves(codes.reshape(n, -1, RUN)).reshape(n, -1)


def _unpack_codes(packed: np.ndarray) -> np.ndarray:
    n = len(packed)
    return bits.unpack_nibble_halves(packed.reshape(n, -1, RUN // 2)).reshape(n, -1)


def _levels(levels: tuple[int, ...], codes: np.ndarray) -> np.ndarray:
    return np.take(np.array(levels, np.float32), codes)


def _pack_iq4_nl(parts: Parts) -> np.ndarray:
    return np.concatenate((half_bytes(parts.d), _pack_codes(parts.codes)), axis=1)


def _unpack_iq4_nl(raw: np.ndarray) -> Parts:
    return Parts(d=halves(raw, 0), codes=_unpack_codes(raw[:, 2:]))


def _values_iq4_nl(parts: Parts) -> np.ndarray:
    values: np.ndarray = parts.d.astype(np.float32)[:, None] * _levels(IQ4_LEVELS, parts.codes)
    return values


def _pack_iq4_xs(parts: Parts) -> np.ndarray:
    assert parts.scales is not None
    low = bits.pack_bitstream(bits.low_nibbles(parts.scales), 4).astype("<u4").view(np.uint8)
    high = bits.pack_bitstream(parts.scales >> np.uint8(4), 2).astype("<u4").view(np.uint8)
    return np.concatenate((half_bytes(parts.d), high[:, :2], low, _pack_codes(parts.codes)), axis=1)


def _unpack_iq4_xs(raw: np.ndarray) -> Parts:
    high = bits.unpack_bitstream(np.ascontiguousarray(raw[:, :4]).view("<u4"), 2, 16)[:, 8:]
    low = bits.unpack_bitstream(np.ascontiguousarray(raw[:, 4:8]).view("<u4"), 4, 8)
    return Parts(d=halves(raw, 0), scales=low | high << np.uint8(4), codes=_unpack_codes(raw[:, 8:]))


def _values_iq4_xs(parts: Parts) -> np.ndarray:
    assert parts.scales is not None
    scales = parts.d.astype(np.float32)[:, None] * (parts.scales.astype(np.float32) - np.float32(32))
    values: np.ndarray = np.repeat(scales, RUN, axis=1) * _levels(IQ4_LEVELS, parts.codes)
    return values


def _pack_mxfp4(parts: Parts) -> np.ndarray:
    return np.concatenate((parts.d[:, None], _pack_codes(parts.codes)), axis=1)


def _unpack_mxfp4(raw: np.ndarray) -> Parts:
    return Parts(d=raw[:, 0].copy(), codes=_unpack_codes(raw[:, 1:]))


def _values_mxfp4(parts: Parts) -> np.ndarray:
    values: np.ndarray = half_powers(parts.d)[:, None] * _levels(MXFP4_LEVELS, parts.codes)
    return values


LAYOUTS: Mapping[BlockType, Layout] = {
    layout.block: layout
    for layout in (
        Layout(IQ4_NL, RUN, _pack_iq4_nl, _unpack_iq4_nl, _values_iq4_nl),
        Layout(IQ4_XS, RUN, _pack_iq4_xs, _unpack_iq4_xs, _values_iq4_xs),
        Layout(MXFP4, RUN, _pack_mxfp4, _unpack_mxfp4, _values_mxfp4),
    )
}

"""The weights of an MLX folder, from its bytes: no reader or unpacker of quantkit's exporters has a part in it.

A weight is quantized where `MODULE.scales` lies beside it; bits and group size follow from the shapes:

    biases there        scale * code + bias, codes of b bits in a row's stream of bits, lowest first
    none, 32 columns    mxfp4: 2^(scale byte - 127) * E2M1
    none, 16 columns    nvfp4: E4M3 of the scale byte * E2M1

Source: mlx 0.32.4 `mlx/backend/cpu/quantized.cpp`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "U32": "<u4", "U8": "u1"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
MXFP4_GROUP = 32


class Container:
    """Weights by name, in float32; what fits into `budget` bytes is kept.

    files: safetensors files that were read strictly before.
    """

    def __init__(self, files: Sequence[Path], budget: int) -> None:
        self._places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in files:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._places |= {name: (path, 8 + length, about) for name, about in header.items()}
        self._kept: dict[str, np.ndarray] = {}
        self._free = budget

    def weight(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The values of the weight `name`, float32 of `shape`, which tells how wide its codes are."""
        if name in self._kept:
            return self._kept[name]
        module = name.removesuffix(".weight")
        values: np.ndarray = (
            self._raw(name).astype(np.float32) if not self._has(f"{module}.scales") else self._values(module, shape)
        )
        if values.nbytes <= self._free:
            self._free -= values.nbytes
            self._kept[name] = values
        return values

    def _values(self, module: str, shape: tuple[int, ...]) -> np.ndarray:
        words, scales = self._raw(f"{module}.weight"), self._raw(f"{module}.scales")
        rows, groups = scales.shape
        biases = self._raw(f"{module}.biases") if self._has(f"{module}.biases") else None
        if biases is None:
            codes = _codes(words, 4).reshape(rows, groups, -1)
            scale = _float_scales(scales, codes.shape[2])
            return _rows(np.multiply(E2M1[codes], scale[..., None]))
        codes = _codes(words, words.shape[1] * 32 // shape[1]).reshape(rows, groups, -1)
        wide, offsets = (x.astype(np.float32)[..., None] for x in (scales, biases))
        return _rows(wide * codes.astype(np.float32) + offsets)

    def _has(self, name: str) -> bool:
        return name in self._places

    def _raw(self, name: str) -> np.ndarray:
        path, start, about = self._places[name]
        begin, _ = about["data_offsets"]
        dtype, shape = np.dtype(DTYPES[about["dtype"]]), about["shape"]
        with path.open("rb") as file:
            file.seek(start + begin)
            data = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
        raw: np.ndarray = data.reshape(shape)
        return raw


def _rows(grouped: np.ndarray) -> np.ndarray:
    """(rows, groups, columns of one) as (rows, columns)."""
    rows: np.ndarray = grouped.reshape(len(grouped), -1)
    return rows


def _codes(words: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits from rows of words, uint8."""
    rows = len(words)
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    places = (1 << np.arange(bits)).astype(np.uint8)
    codes: np.ndarray = (stream.reshape(rows, -1, bits) * places).sum(axis=-1, dtype=np.uint8)
    return codes


def _float_scales(stored: np.ndarray, columns: int) -> np.ndarray:
    exponents: np.ndarray = np.exp2(stored.astype(np.float32) - np.float32(127))
    floats: np.ndarray = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return exponents if columns == MXFP4_GROUP else floats

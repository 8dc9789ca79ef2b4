"""ggml itself, from the library inside the xllamacpp package: its own quantizers and dequantizers, by ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType

TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of `ggml.h`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("elements", ctypes.c_int64),
        ("elements_interleaved", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


class CPUTypeTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu` of `ggml-cpu.h`."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@cache
def library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    found = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    for function, traits in (("ggml_get_type_traits", TypeTraits), ("ggml_get_type_traits_cpu", CPUTypeTraits)):
        getattr(found, function).restype = ctypes.POINTER(traits)
        getattr(found, function).argtypes = [ctypes.c_int]
    return found


def quantized(block: BlockType, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """What `ggml_quantize_chunk` makes of rows of values, by the importance of columns: uint8 (rows, bytes)."""
    rows, cols = values.shape
    importance = None if weights is None else np.ascontiguousarray(weights, np.float32).ctypes
    values = np.ascontiguousarray(values, np.float32)
    raw = np.zeros((rows, block.row_bytes(cols)), np.uint8)
    by = importance and importance.data
    size = library().ggml_quantize_chunk(block.id, values.ctypes.data, raw.ctypes.data, 0, rows, cols, by)
    assert size == raw.nbytes
    return raw


def dequantized(block: BlockType, raw: np.ndarray) -> np.ndarray:
    """What ggml takes blocks for: uint8 (rows, bytes) to float32 (rows, cols)."""
    traits = library().ggml_get_type_traits(block.id).contents
    assert (traits.name.decode().lower(), traits.elements, traits.nbytes) == (
        block.name.lower(),
        block.elements,
        block.nbytes,
    )
    raw = np.ascontiguousarray(raw)
    values = np.empty((len(raw), raw.shape[1] // block.nbytes * block.elements), np.float32)
    TO_FLOAT(traits.to_float)(raw.ctypes.data, values.ctypes.data, values.size)
    return values


def input_type(block: BlockType) -> int:
    """The type that the other factor of a product is rounded to on the CPU: 8 for Q8_0, 9 for Q8_1, 15 for Q8_K."""
    return int(library().ggml_get_type_traits_cpu(block.id).contents.vec_dot_type)

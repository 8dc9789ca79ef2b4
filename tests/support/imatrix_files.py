"""Importance matrices, written from `struct` alone: GGUF as llama-imatrix writes it, and what was before it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STRING, UINT32, ARRAY, F32 = 8, 4, 9, 0


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, data: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + data


def keys(texts: Sequence[str] = ("text.txt",), chunks: int = 2, size: int = 4) -> dict[str, bytes]:
    listed = struct.pack("<IQ", STRING, len(texts)) + b"".join(map(string, texts))
    return {
        "general.type": key("general.type", STRING, string("imatrix")),
        "imatrix.datasets": key("imatrix.datasets", ARRAY, listed),
        "imatrix.chunk_count": key("imatrix.chunk_count", UINT32, struct.pack("<I", chunks)),
        "imatrix.chunk_size": key("imatrix.chunk_size", UINT32, struct.pack("<I", size)),
    }


def container(entries: Sequence[bytes], tensors: Mapping[str, tuple[int, tuple[int, ...], bytes]]) -> bytes:
    """tensors: type, dimensions (fastest first) and data by name."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries)
    body = b""
    for name, (kind, dimensions, data) in tensors.items():
        sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += string(name) + sizes + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + body


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def pair(name: str, sums: Sequence[float], count: float = 8) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {
        f"{name}.in_sum2": (F32, (len(sums),), floats(*sums)),
        f"{name}.counts": (F32, (1,), floats(count)),
    }


def gguf_matrix(sums: Mapping[str, Sequence[float]], count: float = 8, **about: Any) -> bytes:
    tensors = {}
    for name in sorted(sums):
        tensors |= pair(name, sums[name], count)
    return container(list(keys(**about).values()), tensors)


def legacy_matrix(sums: Mapping[str, Sequence[float]], calls: int = 2, tail: bytes | None = None) -> bytes:
    data = struct.pack("<i", len(sums))
    for name, values in sums.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)) + floats(*values)
    return data + (struct.pack("<ii", 2, 8) + b"text.txt" if tail is None else tail)


def random_sums(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Skewed sums for every matrix, by GGUF's names: some columns count thousands of times as much, some nothing."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape[-1]) ** 2 * np.exp(2 * rng.standard_normal(shape[-1]))
        values[rng.random(shape[-1]) < 0.02] = 0
        found[name] = values.astype(np.float32)
    return found

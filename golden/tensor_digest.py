"""A digest of a GGUF file's tensors, read by the package `gguf`: no metadata, so no version of any writer."""

from __future__ import annotations

import hashlib
from pathlib import Path


def tensors_digest(path: Path) -> str:
    """SHA-256, hexadecimal, over the name, the type and the bytes of every tensor, by name."""
    from gguf import GGUFReader  # noqa: PLC0415 - an extra

    sha256 = hashlib.sha256()
    for tensor in sorted(GGUFReader(path).tensors, key=lambda tensor: str(tensor.name)):
        sha256.update(f"{tensor.name} {tensor.tensor_type.name} ".encode())
        sha256.update(tensor.data.tobytes())
    return sha256.hexdigest()

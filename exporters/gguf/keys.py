"""Typed look-ups in the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.exporters.gguf.container.file import GGUFFile


class Keys:
    """The keys that start with `prefix`; every refusal names the file, the key and what was found."""

    def __init__(self, gguf: GGUFFile, prefix: str) -> None:
        self.gguf = gguf
        self.prefix = prefix

    def get(self, key: str, kinds: tuple[type, ...], default: Any = None) -> Any:  # noqa: ANN401
        """The value of `prefix + key`, of one of `kinds`; `default` where the key is missing."""
        value = self.gguf.metadata.get(self.prefix + key, default)
        if value is None:
            raise MalformedFile(f"{self.gguf.path}: key {self.prefix + key!r} is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = type(value).__name__
            raise MalformedFile(f"{self.gguf.path}: key {self.prefix + key!r} must be {kinds[0].__name__}, is {found}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer."""
        return int(self.get(key, (int,), default))

    def number(self, key: str, default: float | None = None) -> float:
        """A float as its shortest decimal: float32 0.00001 is 1e-05, not 9.999999747378752e-06."""
        with np.errstate(over="ignore"):
            return float(str(np.float32(self.get(key, (float, int), default))))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return str(self.get(key, (str,), default))

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        return bool(self.get(key, (bool,), default))

    def optional_id(self, key: str) -> int | None:
        """A token id; None where the key is missing."""
        return self.integer(key) if self.prefix + key in self.gguf.metadata else None

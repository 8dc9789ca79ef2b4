"""How large an artifact may be: in bytes, or in bits for each weight of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadOption

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MOST_BITS = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSize:
    """The most that the files of an artifact may take. nbytes or bits_per_weight, one of them.

    Bits per weight are those that every verb prints: bytes of all files times eight, over the weights of the model.
    """

    nbytes: int | None = None
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        if (self.nbytes is None) == (self.bits_per_weight is None):
            raise BadOption("a target is either a size or bits per weight", hint="leave one of them out")
        if self.nbytes is not None and self.nbytes <= 0:
            raise BadOption(f"a target size must be above 0 bytes, is {self.nbytes:,}")
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= MOST_BITS:
            raise BadOption(f"target bits per weight must be above 0 and at most 32, are {self.bits_per_weight}")

    @classmethod
    def parse(cls, size: str | None, bits_per_weight: float | None) -> TargetSize | None:
        """From "300MB", "1.5GiB" or a number of bytes; None where nothing is given.

        Raises:
            BadOption: no number with a unit, both or too much.
        """
        if size is None and bits_per_weight is None:
            return None
        return cls(nbytes=None if size is None else _bytes(size), bits_per_weight=bits_per_weight)

    def budget(self, weights: int) -> int:
        """Bytes, for a model of so many weights."""
        if self.nbytes is not None:
            return self.nbytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * weights / 8)

    def to_json(self) -> dict[str, Any]:
        """What was asked for."""
        return {"bytes": self.nbytes} if self.nbytes is not None else {"bits_per_weight": self.bits_per_weight}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([a-zA-Z]*)", text.strip())
    if found is None or found[2].lower() not in UNITS:
        raise BadOption(f"{text[:40]!r} is no size", hint="such as 300MB, 1.5GiB, or a number of bytes")
    unit = UNITS[found[2].lower()]
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit

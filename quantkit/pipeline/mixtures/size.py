"""How large an artifact may be: in bytes, or in bits for each weight of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadOption

MOST_BITS = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSize:
    """The most that the files of an artifact may take, its model card aside. nbytes or bits_per_weight, one of them.

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

    def budget(self, weights: int) -> int:
        """Bytes, for a model of so many weights."""
        if self.nbytes is not None:
            return self.nbytes
        assert self.bits_per_weight is not None
        return int(self.bits_per_weight * weights / 8)

    def to_json(self) -> dict[str, Any]:
        """What was asked for."""
        return {"bytes": self.nbytes} if self.nbytes is not None else {"bits_per_weight": self.bits_per_weight}

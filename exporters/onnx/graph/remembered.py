"""What a graph's attention remembers from run to run: how inputs and outputs of it are called and shaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAST, PRESENT = "past_key_values.%d.%s", "present.%d.%s"
"""Names of what attention remembers: of a layer, a part of it such as "key" or "value"."""

Shape = tuple["str | int", ...]


@dataclass(frozen=True, slots=True)
class Remembered:
    """batch: sequences of a run. lengths: other inputs than ids, int64. past, present: parts of a layer's memory."""

    batch: str | int
    lengths: Mapping[str, Shape]
    past: Mapping[str, Shape]
    present: Mapping[str, Shape]

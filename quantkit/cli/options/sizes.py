"""Sizes as users type them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit import TargetSize

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,12})(\.[0-9]{1,6})?\s*([KMG]i?)?B?", re.IGNORECASE)


def byte_count(text: str, option: str) -> int:
    """Bytes that `text` names, such as 300MB, 1.5G or 2GiB; units are decimal unless they say Ki, Mi or Gi.

    Raises:
        BadOption: it is no size, or 0.
    """
    from quantkit.errors import BadOption

    found = _SIZE.fullmatch(text.strip())
    unit = (found[3] or "").capitalize() if found else ""
    size = int(float(found[1] + (found[2] or "")) * UNITS[unit]) if found else 0
    if size < 1:
        raise BadOption(f"{option} {text[:40]!r} is no size", hint="such as 300MB, 2G or 1.5GiB")
    return size


def target_size(size: str | None, bits_per_weight: float | None) -> TargetSize | None:
    """What --target-size and --target-bpw ask for; None where neither is given.

    Raises:
        BadOption: no size, both, or too much.
    """
    from quantkit import TargetSize

    if size is None and bits_per_weight is None:
        return None
    nbytes = None if size is None else byte_count(size, "--target-size")
    return TargetSize(nbytes=nbytes, bits_per_weight=bits_per_weight)

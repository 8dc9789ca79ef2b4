"""How much memory there is for this process."""

from __future__ import annotations

import os
from pathlib import Path

_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""What a container may use, of control groups version 2 and 1."""


def machine_memory() -> int | None:
    """Bytes of this machine's memory, or of the container's where it has a limit; None where nobody tells."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    for name in _GROUP_LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():  # "max": no limit
            sizes.append(int(text))
    return min(size for size in sizes if size > 0)

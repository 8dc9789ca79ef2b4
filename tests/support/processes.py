"""Other processes, as tests see them."""

from __future__ import annotations

import os
import time
from pathlib import Path


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " in stat.read_text()
    except OSError:
        return False


def eventually_gone(pid: int, patience: float = 2.0) -> bool:
    """Whether a process ends within `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if gone(pid):
            return True
        time.sleep(0.02)
    return gone(pid)

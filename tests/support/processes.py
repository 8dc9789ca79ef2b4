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


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, as Linux tells them."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [below for child in children for below in (child, *descendants(child))]


def processor_seconds(pid: int) -> float:
    """Processor time that a process has taken, in seconds; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""Run a command in a child process and account for it: wall time, CPU time, peak memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """What a child process took: seconds of wall and of processor (user and system), peak resident bytes."""

    wall: float
    cpu: float
    peak_rss: int


def measured(
    command: Sequence[str | Path], *, expected: Collection[int] = (0,), environment: Mapping[str, str] | None = None
) -> tuple[Cost, str]:
    """Run `command` to its end, with `environment` added to ours; returns its cost and what it printed on stdout.

    Processor time and memory come from `wait4`, so grandchildren count only when the child waited for them.
    `ru_maxrss` is at least the resident size of this process at the time of the call (Linux carries it through exec):
    keep the caller small.

    Raises:
        SystemExit: its exit code is none of `expected`; its last lines are shown.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        added = {**os.environ, **(environment or {})}
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=log, env=added)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if child.returncode not in expected:
            tail = log.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(map(str, command))}\nexited with {child.returncode}:\n{tail}")
        out.seek(0)
        cost = Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        return cost, out.read().decode()

"""A small process between quantkit and a child: the child ends with quantkit, and when it takes too much memory.

Foreign code may loop where no thread of its own is heard, so what watches it is another process, which does nothing
else. It looks every `INTERVAL` seconds whether quantkit is still its parent, and at the memory of the child. When the
child ends it ends in the same way. Where it is killed itself, Linux kills the child.

This file is also the program of that process: it imports the standard library alone, and starts in 20 ms.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

INTERVAL = 0.05
UNLIMITED = -1
NUMBER_BYTES = 8
"""Of a limit in its file, little endian."""
EXCEEDED = "quantkit: memory exceeded: "
"""What the last line on stderr of a child begins with that took too much; its bytes follow."""
OWN_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:")
"""Lines of /proc/PID/status that make up a process's own memory; mapped files, which cost nothing, are in none."""
SET_PARENT_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


def supervised(command: Sequence[str], limit: int = UNLIMITED) -> list[str]:
    """The command that runs `command` under a supervisor, which belongs to this process.

    limit: a file descriptor that the supervisor inherits: a file that holds how many bytes of memory, those of mapped
    files aside, the child may take now, in `NUMBER_BYTES`. Only Linux tells how many it takes; elsewhere, and with
    `UNLIMITED`, nothing is limited.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(limit), *command]


def memory_of(pid: int) -> int:
    """Bytes of its own that a process holds, swapped ones included; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(OWN_MEMORY))


def supervise(parent: int, limit: int, command: Sequence[str]) -> NoReturn:
    """Run `command` until it ends, `parent` ends, or it takes more memory than the file `limit` says."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()
    ended, wake = os.pipe()
    os.set_blocking(ended, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    child = _started(command)
    _let_go_of_the_pipes()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            _end_like(status)
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if limit != UNLIMITED and (taken := memory_of(child)) > _number(limit):
            os.write(2, f"\n{EXCEEDED}{taken}\n".encode())
            os.killpg(0, signal.SIGKILL)
        select.select([ended], [], [], INTERVAL)
        with suppress(BlockingIOError):
            os.read(ended, 64)


def _started(command: Sequence[str]) -> int:
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _die_with(supervisor)
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _die_with(supervisor: int) -> None:
    """Have Linux kill this process when `supervisor` ends, by whatever."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - a third of the time to start; only the child needs it

        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != supervisor:  # it was gone before
        os._exit(127)


def _let_go_of_the_pipes() -> None:
    """Leave stdin and stdout to the child, so that their ends are its ends."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)


def _number(descriptor: int) -> int:
    return int.from_bytes(os.pread(descriptor, NUMBER_BYTES, 0), "little")


def _end_like(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left its own
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    supervise(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

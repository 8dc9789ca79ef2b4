"""The process between quantkit and a child: the child ends with its parent, by its own code, or for its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.supervisor import EXCEEDED, NUMBER_BYTES, memory_of, supervised
from tests.support.processes import eventually_gone

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 2.0
"""Seconds within which a child must be gone."""
DEAF = {
    "sleeping": "import time; time.sleep(60)",
    "ignoring signals": "import signal, time; [signal.signal(n, 1) for n in (1, 2, 13, 15)]; time.sleep(60)",
    "in foreign code that holds the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(60)",
    "in an endless loop": "while True: pass",
    "filling its output": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
}
"""What a child may be doing, whatever its parent's pipes say."""


def run(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = supervised([sys.executable, "-I", "-c", code])
    return subprocess.run(command, capture_output=True, timeout=30, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_it_ends_with_the_childs_exit_code(code: int) -> None:
    assert run(f"raise SystemExit({code})").returncode == code


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGPIPE])
def test_it_ends_by_the_childs_signal(number: signal.Signals) -> None:
    ready = "" if number == signal.SIGKILL else f"signal.signal({number}, signal.SIG_DFL); "
    assert run(f"import os, signal; {ready}os.kill(os.getpid(), {number})").returncode == -number


def test_pipes_are_the_childs() -> None:
    done = run("import sys; sys.stderr.write('e'); print(sys.stdin.read()[::-1])", input=b"abc")
    assert (done.stdout, done.stderr) == (b"cba\n", b"e")


def test_a_program_that_is_not_there_is_an_exit_code_and_a_line() -> None:
    done = subprocess.run(supervised(["/no/such/program"]), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (127, b"/no/such/program: No such file or directory\n")


@pytest.fixture(params=DEAF, ids=DEAF)
def deaf(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A parent whose child does not listen, and the child's process id."""
    child = f"import os; print(os.getpid(), flush=True)\n{DEAF[request.param]}"
    program = (
        "import subprocess, sys; from quantkit.supervisor import supervised\n"
        f"child = subprocess.Popen(supervised([sys.executable, '-c', {child!r}]), stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        yield parent, int(parent.stdout.readline())
        parent.kill()


def test_a_child_that_does_not_listen_ends_with_its_killed_parent(deaf: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, child = deaf
    os.kill(child, 0)
    parent.kill()
    assert eventually_gone(child, PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_killed_supervisor_takes_the_child_along(deaf: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, child = deaf
    assert parent.stdout is not None
    os.kill(int(parent.stdout.readline()), signal.SIGKILL)
    assert eventually_gone(child, PATIENCE)


def test_a_parent_that_ended_before_is_noticed() -> None:
    command = supervised([sys.executable, "-c", "import time; time.sleep(60)"])
    command[4] = "1"  # as if this process had gone, and init had taken over
    assert subprocess.run(command, timeout=10, check=False).returncode == -signal.SIGKILL


def test_a_thread_that_starts_a_child_may_end() -> None:
    """A child belongs to the process, not to the thread that started it, as the kernel alone would have it."""
    program = (
        "import subprocess, sys, threading, time; from quantkit.supervisor import supervised\n"
        "started = []\n"
        "def start(): started.append(subprocess.Popen(supervised([sys.executable, '-c', 'input()']), stdin=-1))\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join(); time.sleep(0.5)\n"
        "assert started[0].poll() is None; started[0].communicate(b'x\\n'); raise SystemExit(started[0].returncode)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process holds")
@pytest.mark.parametrize(
    "code",
    [
        "x = b'x' * (1 << 30)",
        "x = [bytes([i % 255 + 1]) * (1 << 20) for i in range(1024)]",
        "import mmap; m = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1",
        "x = list(range(10**9))",
        "x = bytearray()\nwhile True: x += b'x' * (1 << 20)",
    ],
)
def test_a_child_that_takes_too_much_memory_is_ended_and_says_so(tmp_path: Path, code: str) -> None:
    (tmp_path / "limit").write_bytes((200 << 20).to_bytes(NUMBER_BYTES, "little"))
    with (tmp_path / "limit").open() as limit:
        command = supervised([sys.executable, "-c", f"{code}\nimport time; time.sleep(60)"], limit.fileno())
        done = subprocess.run(command, capture_output=True, pass_fds=(limit.fileno(),), timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    taken = int(done.stderr.decode().splitlines()[-1].removeprefix(EXCEEDED))
    assert taken > 200 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process holds")
def test_a_mapped_file_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as made:
        made.truncate(300 << 20)
    code = (
        "import mmap, os, sys; from pathlib import Path; from quantkit.supervisor import memory_of\n"
        "file = open(sys.argv[1], 'rb'); held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(held[i] for i in range(0, len(held), 4096)); print(memory_of(os.getpid()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, check=True)
    assert 1 << 20 < int(done.stdout) < 100 << 20
    assert memory_of(1 << 30) == 0

"""Making publishing fail: at every call to the system, by death before every call, by rivals.

The sweeps count calls instead of choosing some: call k is made to fail for k = 1, 2, ... until a run is untouched.
Deaths are played in forks of a fresh process, because the test process has threads: `python -m tests.support.faults`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantkit.artifacts import atomic_rename as renaming
from quantkit.artifacts import stage_writer as staging
from quantkit.artifacts.publishing import check_files, clean_up, publish
from quantkit.errors import OutputExists
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, Unit, blob

CALLS = (
    *("open", "mkdir", "posix_fallocate", "pwrite", "fsync", "fdatasync", "preadv"),
    *("rename", "replace", "link", "unlink", "rmdir", "ftruncate"),
)
ROOT = Path(__file__).resolve().parents[2]


def plan(folder: bool, mark: bytes = b"new") -> PlannedArtifact:
    """A model of three read-back windows (see `shrink`), whose bytes begin with `mark`."""
    weights = PlannedFile(
        "model.bin", (Unit("a", 9000, lambda: (mark * 1000, mark * 2000)), Unit("b", 2, lambda: (b"!!",)))
    )
    files = (blob("config.json", mark), weights) if folder else (weights,)
    return PlannedArtifact("demo", folder, files, ())


def content(out: Path) -> dict[str, bytes]:
    """Every byte that publishing left in the folder of `out`, by relative path."""
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}


def instrument(hook: Callable[[str], None], put: Callable[[Any, str, Any], None], *, after: bool = False) -> None:
    """Have `hook(name)` called before or after every system call that publishing makes; `put` replaces an attribute."""

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if not after:
                hook(name)
            result = real(*arguments, **options)
            if after:
                hook(name)
            return result

        put(owner, name, call)

    for name in CALLS:
        wrap(os, name)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        if hasattr(pathlib, "_normal_accessor"):  # Python 3.10: pathlib keeps its own references
            wrap(pathlib._normal_accessor, name)
    wrap(fcntl, "flock")
    wrap(renaming, "_renameat2")


class AtCall:
    """Calls `action` once, at the k-th call, in whichever thread makes it (or the k-th of one thread)."""

    def __init__(self, k: int, action: Callable[[], None], thread: int | None = None) -> None:
        self.k, self.action, self.thread, self.count, self.name = k, action, thread, 0, ""
        self.lock = threading.Lock()

    def __call__(self, name: str) -> None:
        if self.thread not in (None, threading.get_ident()):
            return
        with self.lock:
            self.count += 1
            if self.count != self.k:
                return
            self.name = name
        self.action()


def fail(number: int) -> Callable[[], None]:
    """An action that refuses as the system does."""

    def action() -> None:
        raise OSError(number, os.strerror(number))

    return action


def shrink(put: Callable[[Any, str, Any], None]) -> None:
    """Make small artifacts pass through what otherwise only large ones need."""
    put(staging, "PIECE", 2000)
    put(staging, "WINDOW_BYTES", 3000)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """An empty folder in memory where there is one, because fsync costs nothing there."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


SCENARIOS = {
    "folder-new": (True, False, True),
    "folder-over": (True, True, True),
    "folder-over-without-renameat2": (True, True, False),
    "file-new": (False, False, True),
    "file-over": (False, True, True),
    "file-over-without-hard-links": (False, True, False),
}


def plain_disk(put: Callable[[Any, str, Any], None]) -> None:
    """Pretend that the file system can neither exchange two names nor give a file a second one."""

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    put(renaming, "_renameat2", lambda *_: False)
    put(os, "link", refused)


class Stage:
    """One scenario: an artifact published over an old one or not, on a file system with all its arts or not."""

    def __init__(self, base: Path, folder: bool, old: bool, atomic: bool) -> None:
        self.out, self.folder, self.old, self.atomic = base / "area" / "out", folder, old, atomic
        self.set(old=False)
        self.publish()
        self.wanted = content(self.out)
        self.set(old=True)
        self.before = content(self.out) if old else {}

    def set(self, old: bool) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if old and self.old:
            publish(plan(self.folder, b"old"), self.out)

    def publish(self, **options: Any) -> None:
        publish(plan(self.folder), self.out, overwrite=self.old, **options)

    def visible(self) -> dict[str, bytes]:
        return {name: data for name, data in content(self.out).items() if not name.startswith(".out.")}

    def check_whole(self) -> None:
        """What lies under the final name is the old artifact or the new one, and its manifest is found, if it has one.

        Between two plain renames there may be a moment without a model, but never without the old one.
        """
        visible = self.visible()
        if visible in (self.wanted, self.before):
            return
        assert not (self.folder and self.atomic), visible
        model = {name: data for name, data in visible.items() if name != "out.quantkit.json"}
        if model:
            assert not self.folder
            assert model in ({"out": self.wanted["out"]}, {"out": self.before.get("out")})
            assert model == visible  # no manifest lies beside it, but it has one
            assert check_files(self.out) == []
            return
        assert visible == {}
        aside = {
            f"out{name[len('.out.quantkit-old') :]}": data for name, data in content(self.out).items() if "-old" in name
        }
        beside = {".out.quantkit-part/model.replaced": self.before.get("out")}
        assert (aside == self.before) if self.folder else (beside.items() <= content(self.out).items())

    def check_rerun(self) -> None:
        """The same command again ends with the same bytes, alone."""
        if self.visible() == self.wanted and not self.old:
            with suppress(OutputExists):
                self.publish()
        else:
            self.publish()
        assert content(self.out) == self.wanted
        assert {path.name for path in self.out.parent.iterdir()} == {name.split("/")[0] for name in self.wanted}


def megabytes(count: int) -> PlannedArtifact:
    return PlannedArtifact(
        "demo", True, (PlannedFile("x", (Unit("u", count << 20, lambda: [bytes(1 << 20)] * count),)),), ()
    )


IMPORTS = (
    "import pathlib; from quantkit.artifacts.publishing import publish; "
    "from tests.support import faults; from tests.support.faults import plan; "
    "faults.shrink(setattr);"
)
"""The beginning of a program for `python -c`."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)  # until the signal arrives


def forked(action: Callable[[], None], patience: float | None = None) -> int:
    """Run `action` in a fork, killed after `patience` seconds; return the status as `os.waitpid` gives it."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def sweep_kills(base: Path, folder: bool, old: bool, atomic: bool) -> int:
    """Kill a run before its first call, its second, ... until one lives; return the number of deaths."""
    shrink(setattr)
    stage = Stage(base, folder, old, atomic)

    def run(k: int) -> None:
        if not atomic:
            plain_disk(setattr)
        instrument(AtCall(k, die), setattr)
        stage.publish()

    for k in range(1, 1000):
        stage.set(old=True)
        status = forked(lambda k=k: run(k))
        if status == 0:
            return k - 1
        assert status == signal.SIGKILL, status
        stage.check_whole()
        stage.check_rerun()
    raise AssertionError("no run was ever left alone")


def kills_upon_kills(base: Path, atomic: bool) -> int:
    """Kill a run that replaces a file before each of its renames, and what cleans up after it before each of its own;
    return the number of second deaths."""
    shrink(setattr)
    if not atomic:
        plain_disk(setattr)
    stage, deaths = Stage(base, False, True, atomic), 0
    renames = ("_renameat2", "rename", "replace", "link", "unlink", "rmdir")

    def dying(k: int, action: Callable[[], object]) -> bool:
        def run() -> None:
            at = AtCall(k, die)
            instrument(lambda name: at(name) if name in renames else None, setattr)
            action()

        status = forked(run)
        assert status in (0, signal.SIGKILL), status
        return status != 0

    for k in range(1, 50):
        for second in range(1, 50):
            stage.set(old=True)
            if not dying(k, stage.publish):
                return deaths
            again = dying(second, lambda: clean_up(plan(False), stage.out))
            deaths += again
            stage.check_whole()
            clean_up(plan(False), stage.out)
            assert stage.visible() in (stage.before, stage.wanted)
            assert content(stage.out) == stage.visible(), sorted(content(stage.out))
            if not again:
                break
    raise AssertionError("no run was ever left alone")


def random_kills(base: Path, count: int) -> int:
    """Kill a run of 20 MiB at random times; return how often it was in the middle."""
    out = base / "out"
    planned = megabytes(20)
    begin = time.perf_counter()
    publish(planned, out)
    duration = time.perf_counter() - begin
    wanted, rng, midway = content(out), random.Random(7), 0
    shutil.rmtree(out)
    for _ in range(count):
        forked(lambda: publish(planned, out) and None, rng.uniform(0, 1.2 * duration))
        midway += not out.exists()
        if out.exists():
            assert check_files(out) == []
            shutil.rmtree(out)
        publish(planned, out)
        assert content(out) == wanted
        shutil.rmtree(out)
    return midway


def race(base: Path, count: int) -> int:
    """Let `count` processes publish one name at once, ten times; return how many won."""
    out, start, won = base / "out", base / "start", 0

    def run() -> None:
        while not start.exists():
            time.sleep(0.0005)
        try:
            publish(plan(True), out)
        except OutputExists:
            os._exit(2)

    for _ in range(10):
        children = []
        for _ in range(count):
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    run()
                    os._exit(0)
                os._exit(1)
            children.append(child)
        start.touch()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0] + [2] * (count - 1), codes
        assert check_files(out) == []
        assert sorted(path.name for path in base.iterdir()) == ["out", "start"]
        won += codes.count(0)
        start.unlink()
        shutil.rmtree(out)
    return won


def watch(base: Path, rounds: int) -> int:
    """Replace a folder again and again while another process looks; return how often it looked."""
    out, stop = base / "out", base / "stop"
    publish(plan(True, b"old"), out)
    marks = [b"old", b"new"]

    def replace() -> None:
        for index in range(rounds):
            publish(plan(True, marks[index % 2]), out, overwrite=True)
        stop.touch()

    child = os.fork()
    if child == 0:
        replace()
        os._exit(0)
    looks = 0
    while not stop.exists():
        assert stat.S_ISDIR(out.stat().st_mode)  # never missing
        with suppress(FileNotFoundError):  # the folder found a moment ago may be the old one, on its way out
            assert (out / "config.json").read_bytes() in marks
            looks += 1
    assert os.waitpid(child, 0)[1] == 0
    return looks


def alone(action: str, *arguments: object) -> int:
    """Run one of the functions above in a fresh process, which has no threads; return the number that it prints."""
    command = [sys.executable, "-m", "tests.support.faults", action, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return int(done.stdout)


if __name__ == "__main__":
    where, numbers = Path(sys.argv[2]), [int(text) for text in sys.argv[3:]]
    actions = {"sweep": sweep_kills, "twice": kills_upon_kills, "random": random_kills, "race": race, "watch": watch}
    print(actions[sys.argv[1]](where, *numbers))

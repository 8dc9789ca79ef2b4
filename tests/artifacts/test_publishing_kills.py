"""Publishing when the process is killed or interrupted, and when several publish the same name.

After a kill at any instant the final name holds a whole artifact or nothing (with `overwrite`: the old one, or set
aside where names cannot be exchanged), and the same command run again gives the same bytes and leaves no trace.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from quantkit.artifacts import atomic_rename as renaming
from quantkit.artifacts.output_lock import Lock
from quantkit.artifacts.publishing import check_files, publish
from quantkit.errors import OutputExists, QuantkitError
from quantkit.files.planned_files import PlannedArtifact, PlannedFile, Unit
from tests.support.faults import (
    IMPORTS,
    ROOT,
    SCENARIOS,
    AtCall,
    Stage,
    alone,
    content,
    instrument,
    memory_folder,
    plain_disk,
    plan,
    shrink,
)

scenarios = pytest.mark.parametrize(("folder", "old", "atomic"), SCENARIOS.values(), ids=SCENARIOS)


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in memory; three windows of read-back are enough for the model of `plan`."""
    shrink(monkeypatch.setattr)
    with memory_folder() as path:
        yield path


@scenarios
def test_a_kill_before_any_call_leaves_old_or_new_and_a_rerun_mends_it(
    fast_path: Path, folder: bool, old: bool, atomic: bool
) -> None:
    assert alone("sweep", fast_path, int(folder), int(old), int(atomic)) > 30


def test_a_kill_at_a_random_time_leaves_all_or_nothing(fast_path: Path) -> None:
    assert alone("random", fast_path, 10) > 2


@pytest.mark.parametrize("point", ["fallocate:2", "pwrite64:1", "fdatasync:1", "fsync:1", "renameat2:1"])
def test_a_kill_inside_a_system_call_leaves_all_or_nothing(fast_path: Path, point: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    call, k = point.split(":")
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}"]
    program = f"{IMPORTS} publish(plan(True), pathlib.Path({str(fast_path / 'out')!r}))"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "PTRACE" in done.stderr:
        pytest.skip("this process may not trace others")
    assert done.returncode == -signal.SIGKILL
    out = fast_path / "out"
    if out.exists():
        assert check_files(out) == []
        shutil.rmtree(out)
    publish(plan(True), out)
    assert check_files(out) == []
    assert [path.name for path in fast_path.iterdir()] == ["out"]


# The user stops it


def interrupt() -> None:
    raise KeyboardInterrupt


@scenarios
def test_an_interrupt_after_any_call_leaves_old_or_new_and_a_rerun_mends_it(
    fast_path: Path, folder: bool, old: bool, atomic: bool
) -> None:
    stage = Stage(fast_path, folder, old, atomic)
    for k in range(1, 1000):
        stage.set(old=True)
        at = AtCall(k, interrupt, threading.get_ident())
        with pytest.MonkeyPatch.context() as patch:
            if not atomic:
                plain_disk(patch.setattr)
            instrument(at, patch.setattr, after=True)
            with suppress(KeyboardInterrupt):
                stage.publish()
        if at.count < k:
            break
        assert stage.visible() in (stage.wanted, stage.before)
        left = {path.name for path in stage.out.parent.iterdir() if path.name.startswith(".")}
        assert left <= {".out.quantkit-lock"}
        stage.check_rerun()
    assert k > 15


@pytest.mark.parametrize("old", [False, True])
def test_an_interrupt_before_any_buffer_leaves_nothing(fast_path: Path, old: bool) -> None:
    out = fast_path / "out"
    if old:
        publish(plan(True, b"old"), out)
    before = content(out)
    for k in range(40):

        def produce(k: int = k) -> Iterator[bytes]:
            for index in range(40):
                if index == k:
                    signal.raise_signal(signal.SIGINT)
                yield b"x" * 100

        planned = PlannedArtifact("demo", True, (PlannedFile("x", (Unit("u", 4000, produce),)),), ())
        with pytest.raises(KeyboardInterrupt):
            publish(planned, out, overwrite=old)
        assert content(out) == before


def test_an_interrupt_from_the_terminal_ends_a_run_at_once_and_leaves_nothing(fast_path: Path) -> None:
    program = (
        f"{IMPORTS} import time\n"
        "def produce():\n for i in range(1000):\n  print(i, flush=True); yield bytes(1000); time.sleep(0.01)\n"
        "unit = faults.Unit('u', 1000000, produce)\n"
        "planned = faults.PlannedArtifact('demo', True, (faults.PlannedFile('x', (unit,)),), ())\n"
        f"publish(planned, pathlib.Path({str(fast_path / 'out')!r}))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "20":
        assert child.poll() is None
    assert {path.name for path in fast_path.iterdir()} == {".out.quantkit-lock", ".out.quantkit-part"}
    begin = time.perf_counter()
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=10)
    assert "KeyboardInterrupt" in stderr
    assert time.perf_counter() - begin < 2
    assert list(fast_path.iterdir()) == []


# Others do the same


def test_a_lock_that_its_last_holder_removed_meanwhile_is_taken_anew(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = fast_path / "lock", fcntl.flock
    removals = iter([path.unlink])
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: [next(removals, bool)(), real(*arguments)])
    with Lock(path, fast_path / "out"), pytest.raises(OutputExists, match=f"pid {os.getpid()}"), Lock(path, fast_path):
        pass
    assert list(fast_path.iterdir()) == []


def test_a_second_run_is_told_who_writes_and_touches_nothing(fast_path: Path) -> None:
    out = fast_path / "out"
    errors = []

    def second() -> Iterator[bytes]:
        try:
            publish(plan(True, b"bad"), out, overwrite=True)
        except QuantkitError as error:
            errors.append(error)
        yield b"x"

    publish(PlannedArtifact("demo", True, (PlannedFile("x", (Unit("u", 1, second),)),), ()), out)
    assert [(type(error), str(error)) for error in errors] == [
        (OutputExists, f"{out}: another quantkit (pid {os.getpid()}) is writing it")
    ]
    assert check_files(out) == []
    assert [path.name for path in fast_path.iterdir()] == ["out"]


def test_of_many_runs_at_once_exactly_one_wins(fast_path: Path) -> None:
    assert alone("race", fast_path, 8) == 10


def test_a_reader_never_finds_a_replaced_model_missing_or_partial(fast_path: Path) -> None:
    if not renaming.exchange(*map(_touched, (fast_path / "a", fast_path / "b"))):
        pytest.skip("this file system cannot exchange two names")
    assert alone("watch", fast_path, 100) > 100


def _touched(path: Path) -> Path:
    path.touch()
    return path

"""The protocol between quantkit and an engine in a child process, with children that behave in every bad way."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quantkit.errors import EngineFailed
from quantkit.runtimes import _engine_process as engine_process
from quantkit.runtimes._engine_process import Allowance, EngineProcess
from tests.support.processes import eventually_gone

ARTIFACT = Path("model.bin")
ROOT = Path(__file__).resolve().parents[2]
AMPLE = Allowance("thinking", 60.0, 1 << 30)
SOON = Allowance("thinking", 0.3, 1 << 30)
ECHO = """import sys, json
for line in sys.stdin:
    data = line.encode()
    sys.stdout.buffer.write(json.dumps({"bytes": len(data)}).encode() + b"\\n" + data)
    sys.stdout.flush()"""


def child(code: str, **options: object) -> closing[EngineProcess]:
    return closing(EngineProcess([sys.executable, "-I", "-c", code], engine="warp", path=ARTIFACT, **options))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    yield
    assert (len(list(folder.iterdir())) if folder.exists() else 0) == before


def test_one_child_answers_many_requests_in_order():
    with child(ECHO) as engine:
        for length in (1, 7, 200_000):
            answer, data = engine.ask(AMPLE, do="echo", token_ids=list(range(length)))
            assert answer == {"bytes": len(data)}
            assert data == b'{"do": "echo", "token_ids": %s}\n' % str(list(range(length))).encode()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('input(); print(\'{"error": "no such tensor"}\', flush=True); input()', "warp: no such tensor"),
        ("input(); print('loading...', flush=True); input()", r"warp answered b'loading\.\.\.\\n' instead of JSON"),
        ("input(); print('[1]', flush=True); input()", ".* instead of JSON"),
        ("input(); raise SystemExit('out of luck')", "warp died with exit code 1 while thinking: out of luck"),
        ("input()", "warp died with exit code 0 while thinking: no message"),
        ("input(); import os; os.abort()", "warp died with SIGABRT"),
        ("input(); print('{\"bytes\": 8}\\n1234', end='')", "warp died with exit code 0"),
    ],
)
def test_every_failure_is_one_line_that_names_artifact_and_engine(code, message):
    with child(code) as engine, pytest.raises(EngineFailed, match=f"^model.bin: {message}"):
        engine.ask(AMPLE, do="load")


def test_the_engines_own_words_are_found_in_its_log():
    code = "import sys; print('E: bad magic', file=sys.stderr); print('bye', file=sys.stderr)"
    with child(code, reason=lambda log: log[0]) as engine, pytest.raises(EngineFailed, match="E: bad magic"):
        engine.ask(AMPLE, do="load")


def test_a_child_that_never_answers_is_killed_in_time():
    with child("import time; time.sleep(60)") as engine:
        start = time.monotonic()
        with pytest.raises(EngineFailed, match=r"^model.bin: warp gave no answer within 0\.3 s of thinking$"):
            engine.ask(SOON, do="load")
        assert time.monotonic() - start < 10
        with pytest.raises(EngineFailed):
            engine.ask(AMPLE, do="again")


def test_a_slow_answer_within_its_time_is_taken():
    with child("input(); import time; time.sleep(0.2); print('{}', flush=True); input()") as engine:
        assert engine.ask(AMPLE, do="load") == ({}, b"")


def test_a_child_that_does_not_read_cannot_block_us():
    with child("import time; time.sleep(60)") as engine, pytest.raises(EngineFailed, match="no answer"):
        engine.ask(SOON, do="load", token_ids=list(range(200_000)))  # more than a pipe holds


def test_leaving_ends_a_child_that_does_not_want_to_go(monkeypatch):
    monkeypatch.setattr(engine_process, "FAREWELL_SECONDS", 0.1)
    with child("input(); print('{}', flush=True); import time; time.sleep(60)") as engine:
        engine.ask(AMPLE, do="load")
        process = engine._process
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_child_started_ends_with_it(monkeypatch):
    monkeypatch.setattr(engine_process, "FAREWELL_SECONDS", 0.1)
    code = """import json, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
input(); print(json.dumps({"pid": other.pid}), flush=True); time.sleep(60)"""
    with child(code) as engine:
        answer, _ = engine.ask(AMPLE, do="load")
    assert eventually_gone(answer["pid"])


def test_a_well_behaved_child_may_say_goodbye(tmp_path):
    file = tmp_path / "goodbye"
    code = f"import sys; list(sys.stdin); open({str(file)!r}, 'w').close()"
    with child(code):
        pass
    assert file.exists()


def test_closing_twice_is_safe():
    with child(ECHO) as engine:
        engine.close()


def test_what_it_was_doing_is_told_when_it_takes_too_long():
    slow = Allowance("loading the model", 0.3, 1 << 30)
    with child("import time; time.sleep(60)") as engine, pytest.raises(EngineFailed, match=r"loading the model$"):
        engine.ask(slow, do="load")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process holds")
def test_an_engine_that_takes_too_much_memory_is_ended_and_the_message_says_so():
    code = "input(); held = b'x' * (1 << 30); input()"
    with child(code) as engine, pytest.raises(EngineFailed) as caught:
        engine.ask(Allowance("loading the model", 60.0, 200 << 20), do="load")
    words = str(caught.value).split(": it took ")
    assert words[0] == "model.bin: warp was ended while loading the model"
    taken, most = words[1].split(" MiB, more than ")
    assert (int(taken) >= 200, most) == (True, "200 MiB")  # rounded down: it may be seen just above


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process holds")
def test_every_request_has_its_own_allowance():
    """What one may take, the next may not."""
    code = """import json, time
held = []
while True:
    held.append(b"x" * (json.loads(input())["megabytes"] << 20)); print("{}", flush=True)"""
    with child(code) as engine:
        engine.ask(Allowance("growing", 60.0, 600 << 20), megabytes=300)
        with pytest.raises(EngineFailed, match="more than 400 MiB"):
            engine.ask(Allowance("growing", 60.0, 400 << 20), megabytes=300)
            engine.ask(Allowance("growing", 60.0, 400 << 20), megabytes=300)


STUCK = {
    "sleeping": "import time; time.sleep(60)",
    "in foreign code that holds the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(60)",
    "in an endless loop": "while True: pass",
    "answering": "print('{}', flush=True); input()",
    "with a child of its own": "import subprocess; subprocess.run(['sleep', '60'])",
}


@pytest.mark.parametrize("code", STUCK.values(), ids=STUCK)
def test_a_killed_parent_leaves_no_engine_behind(code):
    program = f"""import sys; from pathlib import Path
from quantkit.runtimes._engine_process import Allowance, EngineProcess
code = "import os, sys; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); input()\\n" + {code!r}
engine = EngineProcess([sys.executable, "-I", "-c", code, sys.argv[1]], engine="warp", path=Path("model.bin"))
engine.ask(Allowance("waiting", 60.0, 1 << 40), do="load")
sys.stdin.read()"""
    with tempfile.NamedTemporaryFile("r") as told:
        command = [sys.executable, "-c", program, told.name]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as parent:
            while not (pid := told.read()).endswith("\n"):
                told.seek(0)
                assert parent.poll() is None
                time.sleep(0.02)
            time.sleep(0.1)  # so that it is stuck
            parent.kill()
            assert eventually_gone(int(pid), 2.0)

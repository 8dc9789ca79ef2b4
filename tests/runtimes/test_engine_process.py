"""The protocol between quantkit and an engine in a child process, with children that behave in every bad way."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quantkit.errors import EngineFailed
from quantkit.runtimes import _engine_process as engine_process
from quantkit.runtimes._engine_process import EngineProcess

ARTIFACT = Path("model.bin")
ECHO = """import sys, json
for line in sys.stdin:
    data = line.encode()
    sys.stdout.buffer.write(json.dumps({"bytes": len(data)}).encode() + b"\\n" + data)
    sys.stdout.flush()"""


def child(code: str, **options: object) -> closing[EngineProcess]:
    return closing(EngineProcess([sys.executable, "-I", "-c", code], engine="warp", path=ARTIFACT, **options))  # type: ignore[arg-type]


def eventually_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    yield
    assert (len(list(folder.iterdir())) if folder.exists() else 0) == before


def test_one_child_answers_many_requests_in_order():
    with child(ECHO) as engine:
        for length in (1, 7, 200_000):
            answer, data = engine.ask(do="echo", token_ids=list(range(length)))
            assert answer == {"bytes": len(data)}
            assert data == b'{"do": "echo", "token_ids": %s}\n' % str(list(range(length))).encode()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('input(); print(\'{"error": "no such tensor"}\', flush=True); input()', "warp: no such tensor"),
        ("input(); print('loading...', flush=True); input()", r"warp answered b'loading\.\.\.\\n' instead of JSON"),
        ("input(); print('[1]', flush=True); input()", ".* instead of JSON"),
        ("input(); raise SystemExit('out of luck')", "warp died with exit code 1: out of luck"),
        ("input()", "warp died with exit code 0: no message"),
        ("input(); import os; os.abort()", "warp died with SIGABRT"),
        ("input(); print('{\"bytes\": 8}\\n1234', end='')", "warp died with exit code 0"),
    ],
)
def test_every_failure_is_one_line_that_names_artifact_and_engine(code, message):
    with child(code) as engine, pytest.raises(EngineFailed, match=f"^model.bin: {message}"):
        engine.ask(do="load")


def test_the_engines_own_words_are_found_in_its_log():
    code = "import sys; print('E: bad magic', file=sys.stderr); print('bye', file=sys.stderr)"
    with child(code, reason=lambda log: log[0]) as engine, pytest.raises(EngineFailed, match="E: bad magic"):
        engine.ask(do="load")


def test_a_child_that_never_answers_is_killed_in_time():
    with child("import time; time.sleep(60)") as engine:
        start = time.monotonic()
        with pytest.raises(EngineFailed, match=r"^model.bin: warp gave no answer within 0\.3 s$"):
            engine.ask(do="load", timeout=0.3)
        assert time.monotonic() - start < 10
        with pytest.raises(EngineFailed):
            engine.ask(do="again", timeout=5.0)


def test_a_slow_answer_within_its_time_is_taken():
    with child("input(); import time; time.sleep(0.2); print('{}', flush=True); input()") as engine:
        assert engine.ask(do="load", timeout=20.0) == ({}, b"")


def test_a_child_that_does_not_read_cannot_block_us():
    with child("import time; time.sleep(60)") as engine, pytest.raises(EngineFailed, match="no answer"):
        engine.ask(do="load", timeout=0.3, token_ids=list(range(200_000)))  # more than a pipe holds


def test_leaving_ends_a_child_that_does_not_want_to_go(monkeypatch):
    monkeypatch.setattr(engine_process, "FAREWELL_SECONDS", 0.1)
    with child("input(); print('{}', flush=True); import time; time.sleep(60)") as engine:
        engine.ask(do="load")
        process = engine._process
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_child_started_ends_with_it(monkeypatch):
    monkeypatch.setattr(engine_process, "FAREWELL_SECONDS", 0.1)
    code = """import json, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
input(); print(json.dumps({"pid": other.pid}), flush=True); time.sleep(60)"""
    with child(code) as engine:
        answer, _ = engine.ask(do="load")
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

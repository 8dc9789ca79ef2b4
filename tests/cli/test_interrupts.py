"""An interrupt at any moment, from the first line of quantkit's own code on, ends a command with one line.

Before it the interpreter starts, and says in its own words that it was interrupted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from quantkit.cli import app
from quantkit.cli.app import main
from quantkit.errors import Interrupted

ROOT = Path(__file__).resolve().parents[2]
DELAYS = [0.001, 0.002, 0.005, *(step / 1000 for step in range(10, 350, 20))]
"""Seconds after the command begins: 20 of them, through imports, work and the end."""
BEGIN = "import sys; from quantkit.__main__ import entry; sys.stdout.write('begin\\n'); sys.stdout.flush(); entry()"
"""What a console script does, telling when it begins."""


def interrupted(delay: float, *arguments: str, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    command = [sys.executable, "-c", BEGIN, *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begin\n"
    time.sleep(delay)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=30)
    return child.returncode, stdout, stderr


def check(code: int, stderr: str) -> None:
    if stderr.startswith("Traceback") and "quantkit" not in stderr:
        return  # on a busy machine `BEGIN` had not come to its end
    assert "Traceback" not in stderr
    if code == 0:  # it was done before
        assert "interrupted" not in stderr
        return
    assert code == Interrupted.exit_code == 130, stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("note: ")]
    assert lines == ["error: interrupted; nothing was published"]


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "golden/model"]], ids=["help", "inspect"])
def test_an_interrupt_at_any_moment_is_one_line(arguments: list[str]) -> None:
    codes = []
    for delay in DELAYS:
        code, _, stderr = interrupted(delay, *arguments)
        check(code, stderr)
        codes.append(code)
    assert 130 in codes


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    "arguments",
    [
        ["formats"],
        ["plan", "golden/model", "--method", "rtn", "--to", "gguf"],
        ["run", "golden/model", "-p", "def f(x):"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_verb_is_interrupted_in_one_line(arguments: list[str], delay: float) -> None:
    code, _, stderr = interrupted(delay, *arguments)
    check(code, stderr)


def test_a_request_to_end_is_an_interrupt() -> None:
    for delay in (0.05, 0.2):
        code, _, stderr = interrupted(delay, "inspect", "golden/model", number=signal.SIGTERM)
        assert code in (0, 130, -signal.SIGTERM)  # before the first line of quantkit, it just ends
        assert "Traceback" not in stderr


CAUGHT = """
from quantkit.__main__ import entry
from quantkit.cli import app

def main():
    try:
        exec(TEXT)
    except KeyboardInterrupt:
        return 130

app.main = main
entry()
"""


@pytest.mark.parametrize("text", ["raise KeyboardInterrupt", "import signal; signal.raise_signal(signal.SIGINT)"])
def test_an_interrupt_inside_generated_code_ends_with_the_same_code(text: str, tmp_path: Path) -> None:
    """Standard library and packages `exec` text while they are imported (`dataclass`, `namedtuple`)."""
    program = CAUGHT.replace("TEXT", repr(f"import signal; signal.signal(2, signal.default_int_handler); {text}"))
    (tmp_path / "caught.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "caught"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


PRINTING = """
import sys, traceback, signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    traceback.print_exc()
    raise ImportError("numpy._core.multiarray failed to import")
"""


def test_an_interrupt_during_an_import_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """C extensions print it, and raise another error."""
    (tmp_path / "module_that_prints.py").write_text(PRINTING)
    monkeypatch.syspath_prepend(tmp_path)

    def work(*_: object, **__: object) -> None:
        import_module("module_that_prints")
        time.sleep(5)
        pytest.fail("the interrupt was lost")

    monkeypatch.setattr("quantkit.registry.containers", work)
    assert main(["formats"]) == 130
    assert capfd.readouterr().err == "error: interrupted; nothing was published\n"


def test_an_import_that_hides_the_interrupt_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """C extensions turn it into other errors."""

    def fail(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    monkeypatch.setattr("quantkit.registry.containers", fail)
    assert main(["formats"]) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was published\n"


def test_an_interrupt_inside_a_finalizer_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work(*_: object, **__: object) -> None:
        Dying()
        time.sleep(1)
        pytest.fail("the interrupt was lost")

    monkeypatch.setattr("quantkit.registry.containers", work)
    assert main(["formats"]) == 130
    assert capfd.readouterr().err == "error: interrupted; nothing was published\n"


def test_a_hangup_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup asks for it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr("quantkit.registry.containers", lambda: signal.raise_signal(signal.SIGHUP) or ())
    try:
        assert main(["formats"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_leaves_the_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in app.SIGNALS], sys.unraisablehook
    assert app.main(["--version"]) == 0
    assert ([signal.getsignal(number) for number in app.SIGNALS], sys.unraisablehook) == before

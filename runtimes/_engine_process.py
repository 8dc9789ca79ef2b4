"""A child process that holds an inference engine and answers over two pipes.

An engine is foreign code that parses files, may abort on them, logs to file descriptors, and gives its memory back for
certain only when its process ends; some live in an environment of their own. The protocol: a request is one JSON line
on the child's stdin; an answer is one JSON line on its stdout, followed by `bytes` bytes of data when it says so, or
`{"error": "one line"}`. Stdin at its end means goodbye.

Every request has an `Allowance` of time and memory, beyond which the child is killed. `quantkit.supervisor` stands
between and ends the child when this process ends, however it does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.models.spec import ModelSpec
from quantkit.supervisor import EXCEEDED, NUMBER_BYTES, supervised

if TYPE_CHECKING:
    from typing_extensions import Self

FAREWELL_SECONDS = 5.0
"""How long an engine may take to end by itself before it is killed."""

Reason = Callable[[Sequence[str]], "str | None"]
"""Finds in the lines of the child's stderr why the engine refused, in its own words; None if they do not say."""


def _no_reason(log: Sequence[str]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an engine may spend on a request.

    doing: what it does meanwhile, for messages: "loading the model". seconds: of time. memory: bytes that it may hold
    then, mapped files aside; only Linux holds it to them.
    """

    doing: str
    seconds: float
    memory: int


class EngineProcess:
    """A running child. Every failure is an `EngineFailed` of one line that names the artifact and the engine.

    Args:
        command: what to start; its stderr is kept, for the last words of an engine that dies.
        engine: its name in messages.
        path: the artifact that it is started for.
        reason: how to find the cause of a failure in the engine's log.
    """

    def __init__(self, command: Sequence[str], *, engine: str, path: Path, reason: Reason = _no_reason) -> None:
        self._engine = engine
        self._path = path
        self._reason = reason
        self._late = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._limit = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._allow((1 << 63) - 1)
        # A session of its own: Ctrl-C reaches us alone, and what the engine starts can be ended with it.
        self._process = subprocess.Popen(
            supervised(command, self._limit.fileno()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            pass_fds=(self._limit.fileno(),),
        )

    def ask(
        self, allowance: Allowance, **request: str | int | bool | Sequence[int]
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request; return the answer and its data, which the caller may change.

        Raises:
            EngineFailed: the answer is an error, the engine died, or it took more than `allowance`, and was killed.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert isinstance(stdout, io.BufferedReader)
        self._allow(allowance.memory)
        with self._deadline(allowance.seconds):
            try:
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            except BrokenPipeError:
                raise self._death(allowance) from None
            line = stdout.readline()
            answer = self._parsed(line, allowance)
            if "error" in answer:
                raise self._refusal(answer["error"], last=request.get("do") == "load")
            size = answer.get("bytes", 0)
            data = bytearray(size)
            if stdout.readinto(data) != size:
                raise self._death(allowance)
        return answer, data

    def close(self) -> None:
        """End the process and all that it started; safe to call twice."""
        self._end()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self._limit.close()

    def _end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # when it is gone already, with a request unread
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a wedged engine would keep us for ever
            self._process.wait(FAREWELL_SECONDS)
        self._kill()
        self._process.wait()

    def _parsed(self, line: bytes, allowance: Allowance) -> dict[str, Any]:
        if not line:
            raise self._death(allowance)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EngineFailed(f"{self._path}: {self._engine} answered {line[:80]!r} instead of JSON")
        return answer

    def _refusal(self, error: str, *, last: bool) -> EngineFailed:
        """What an answered `error` says. last: nothing can be asked after it, so the engine is ended before its log is
        read: engines that log from a thread of their own may answer before they have written why."""
        if last:
            self._end()
        return EngineFailed(f"{self._path}: {self._engine}: {self._reason(self._log_lines()) or error}")

    def _allow(self, memory: int) -> None:
        os.pwrite(self._limit.fileno(), memory.to_bytes(NUMBER_BYTES, "little"), 0)

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kill the child after `seconds`, which ends every wait for its pipes."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        if self._process.returncode is None and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: a zombie, on macOS
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _death(self, allowance: Allowance) -> EngineFailed:
        code = self._process.wait()
        where = f"{self._path}: {self._engine}"
        if self._late:
            return EngineFailed(f"{where} gave no answer within {allowance.seconds:g} s of {allowance.doing}")
        log = self._log_lines()
        last = (log or ["no message"])[-1]
        if last.startswith(EXCEEDED):
            taken, most = int(last.removeprefix(EXCEEDED)) >> 20, allowance.memory >> 20
            return EngineFailed(f"{where} was ended while {allowance.doing}: it took {taken} MiB, more than {most} MiB")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return EngineFailed(f"{where} died with {how} while {allowance.doing}: {self._reason(log) or last}")

    def _log_lines(self) -> list[str]:
        self._log.seek(0)
        return [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]


def stages_in(names: Sequence[str], values: np.ndarray, rows: int, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The stages of a trace of `rows` tokens, which follow each other in flat `values`: [rows, hidden], [rows, vocab].

    Raises:
        EngineFailed: they are not as many.
    """
    widths = {name: spec.vocab_size if name == "logits" else spec.hidden_size for name in names}
    if values.size != rows * sum(widths.values()):
        raise EngineFailed(f"the stages of {rows} tokens have {values.size:,} values")
    stages, start = {}, 0
    for name, width in widths.items():
        stages[name] = values[start : start + rows * width].reshape(rows, width)
        start += rows * width
    return stages


class EngineSession:
    """What sessions of engines in child processes have in common: leaving one ends its child.

    Whoever starts a child puts it into `_child`.
    """

    _child: EngineProcess

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

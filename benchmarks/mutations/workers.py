"""Trials in processes that are watched: one that dies or hangs is a finding, and another takes its place."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.mutations.subjects import Subject
from benchmarks.mutations.trial import Outcome, Trial

HANG_SECONDS = 30.0
MAX_ADDRESSES = 4 << 30
"""Bytes that a worker may map, so that a mutant that takes all memory does not take that of this machine."""


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    number: int | None = None
    since: float = 0.0


def outcomes(
    subject: Subject, numbers: Iterable[int], *, workers: int, render_every: int, scratch: Path
) -> Iterator[Outcome]:
    """The outcome of each mutant, in the order in which they end."""
    waiting = iter(numbers)
    running: list[_Worker] = []
    try:
        while True:
            while len(running) < workers and (number := next(waiting, None)) is not None:
                worker = _started(subject, render_every, scratch)
                running.append(worker)
                _give(worker, number)
            if not running:
                return
            ready = wait([worker.pipe for worker in running], timeout=1.0)
            for worker in list(running):
                outcome = _heard(worker) if worker.pipe in ready else _overdue(worker)
                if outcome is None:
                    continue
                yield outcome
                number = next(waiting, None) if worker.process.is_alive() else None
                if number is not None:
                    _give(worker, number)
                else:
                    running.remove(worker)
                    _stop(worker)
    finally:
        for worker in running:
            _stop(worker)


def _started(subject: Subject, render_every: int, scratch: Path) -> _Worker:
    context = get_context("fork")  # a subject holds functions and megabytes, which need not be sent
    ours, theirs = context.Pipe()
    folder = Path(tempfile.mkdtemp(dir=scratch))
    process = context.Process(target=_serve, args=(subject, render_every, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, number: int) -> None:
    worker.pipe.send(number)
    worker.number, worker.since = number, time.monotonic()


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join(2.0)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def _heard(worker: _Worker) -> Outcome | None:
    number = worker.number
    assert number is not None
    try:
        outcome: Outcome = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Outcome(number, 0.0, 0, f"the process died: {how}", "")
    return outcome


def _overdue(worker: _Worker) -> Outcome | None:
    seconds = time.monotonic() - worker.since
    if seconds < HANG_SECONDS:
        return None
    worker.process.kill()
    worker.process.join()
    assert worker.number is not None
    return Outcome(worker.number, seconds, 0, f"no answer after {seconds:.0f} s", "")


def _serve(subject: Subject, render_every: int, folder: Path, pipe: Connection) -> None:
    """A worker's life: try what it is given until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    log = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    trial = Trial(subject.name, folder)
    trial.run(0, subject.models[0], subject.models[0][subject.name], renders=True)  # imports are nobody's cost
    os.ftruncate(log, 0)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        pipe.send(tried(trial, subject, number, renders=number % render_every == 0, log=log))


def tried(trial: Trial, subject: Subject, number: int, *, renders: bool, log: int) -> Outcome:
    """The outcome of mutant `number`; `log` is stderr, a file, so that what native libraries write there is noticed."""
    model, mutant = subject.mutant(number)
    outcome = trial.run(number, model, mutant, renders=renders)
    said = os.pread(log, 400, 0).decode(errors="replace")
    if said:
        os.ftruncate(log, 0)
        outcome = replace(outcome, fault=outcome.fault or f"wrote on stderr: {said}")
    return outcome

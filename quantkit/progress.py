"""How long work says how far it is: one callback, everywhere.

A function that takes long takes `progress: Progress | None`. What is done in several steps of different kinds is one
`StagedWork`, whose stages are weighted by the work in them, so that time left can be told from the share that is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Told what is being done ("block 3 of 24: q,k,v"), and how much of how much work, in any unit.

    Called now and then, maybe from several threads. What it raises ends the work.
    """

    def __call__(self, what: str, done: float, total: float, /) -> None:
        """`total` may change as more becomes known; `done` does not shrink while `total` stays."""


@runtime_checkable
class Listener(Progress, Protocol):
    """A `Progress` that is told in words as well what the user should know before the work is done."""

    def say(self, text: str, /, *, loud: bool) -> None:
        """One line. loud: what nobody is to overlook."""


def say(progress: Progress | None, text: str, *, loud: bool = False) -> None:
    """Tell `progress` in words, where it listens."""
    if isinstance(progress, Listener):
        progress.say(text, loud=loud)


def unwatched(what: str, done: float, total: float, /) -> None:
    """Progress that nobody asked for."""


class StagedWork:
    """Stages that are worked on in order, told as one amount of work.

    Args:
        progress: who is told.
        weights: the work in every stage, in one unit, by the stage's name, in order.
    """

    def __init__(self, progress: Progress | None, weights: Mapping[str, float]) -> None:
        self._progress = progress or unwatched
        self._weights = dict(weights)
        self._done = dict.fromkeys(weights, 0.0)
        self._lock = Lock()

    def stage(self, name: str, *, beside: bool = False) -> Progress:
        """The progress of one stage, in any unit of its own.

        beside: whether it goes on beside the others; otherwise all stages before it are done when it is told of.
        """

        def tell(what: str, done: float, total: float, /) -> None:
            with self._lock:
                names = list(self._weights)
                self._done |= dict.fromkeys([] if beside else names[: names.index(name)], 1.0)
                self._done[name] = max(self._done[name], done / total if total else 1.0)
                whole = sum(self._weights.values())
                self._progress(what, sum(weight * self._done[each] for each, weight in self._weights.items()), whole)

        return tell

    @property
    def total(self) -> float:
        """The work in all stages."""
        return sum(self._weights.values())

    def skip(self, name: str) -> None:
        """Take a stage out: it need not be done, so its time says nothing about that of the others."""
        with self._lock:
            self._weights[name] = 0.0

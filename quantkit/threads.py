"""Work on several threads whose result does not depend on how many there are.

The law: work is cut into pieces whose size does not depend on the thread count, every piece is computed by one
thread alone, and results are combined in the order of the pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield function(item) for every item, in the order of the items, computed on `threads` threads.

    At most `threads` finished results wait to be taken, so memory does not grow with the number of items.
    """
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def torch_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """function(item) of every item, in their order; see `torch_workers`."""
    with torch_workers(threads) as workers:
        return workers(function, items)


class TorchWorkers(Protocol):
    """Maps a function that uses torch over items, in their order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> list[Result]:
        """function(item) of every item."""


@contextmanager
def torch_workers(threads: int) -> Iterator[TorchWorkers]:
    """Threads for functions that use torch: every operation on the thread that calls it, without gradients.

    To start threads costs about as much as a product of 512 x 512: many short steps should share them.
    """
    import torch  # noqa: PLC0415 - heavy, and round-to-nearest does without it

    if threads == 1:
        with single_threaded_torch(), torch.inference_mode():
            yield lambda function, items: list(map(function, items))
        return

    def workers(function: Callable[[Item], Result], items: Iterable[Item], /) -> list[Result]:
        def inferred(item: Item) -> Result:
            with torch.inference_mode():  # belongs to a thread
                return function(item)

        return list(pool.map(inferred, items))

    # So does this, and a new thread starts with as many OpenMP threads as there are cores.
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool, single_threaded_torch():
        yield workers


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Let every torch operation of this thread run on it alone; restore the old setting afterwards."""
    import torch  # noqa: PLC0415 - heavy, and round-to-nearest does without it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

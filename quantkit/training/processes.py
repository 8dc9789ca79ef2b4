"""Training on several processes at once, each with its share of every step (torch.distributed, started by torchrun)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, distributed

from quantkit.errors import BadOption

Item = TypeVar("Item")
PATIENCE = timedelta(days=7)
"""How long a process waits for another; the first one may quantize for hours before training begins."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among `count`; the first has rank 0, and alone writes."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: consecutive ones, as many as the others' or one more."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by the sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def sums(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Each number, in float64, added up over all processes."""
        found = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.add([found])
        return [float(number) for number in found]

    def take_over(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by that of the first process."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


ALONE = Processes()


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun has started; `ALONE` where it has not.

    device: "cpu" (gloo) or "cuda" (nccl), where each process takes a GPU of its own.

    Raises:
        BadOption: more processes than GPUs.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield ALONE
        return
    # Optimizers import this when they are made. So late it would keep hold of the process group, whose threads would
    # outlive the interpreter and abort the process, now and then, when all is done.
    import_module("torch._dynamo")
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        processes = Processes(distributed.get_rank(), distributed.get_world_size())
        if device == "cuda":
            local = distributed.get_node_local_rank()
            if local >= torch.cuda.device_count():
                raise BadOption(
                    f"process {local + 1} on this machine has no GPU: there are {torch.cuda.device_count()}",
                    hint="torchrun --nproc-per-node with as many as there are GPUs",
                )
            torch.cuda.set_device(local)
        yield processes
    finally:
        distributed.destroy_process_group()

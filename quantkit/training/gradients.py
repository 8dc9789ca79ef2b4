"""Gradients of one step, added up over pieces: sequences on threads, shares on processes.

A piece is `micro_batch` sequences, computed by one thread alone; sums are made in the order of the pieces. On the CPU
the result does not depend on the number of threads (`quantkit.threads`). Processes add up their own sums, so that the
last bits depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantkit.calibration.autocast import rounded_products
from quantkit.threads import TorchWorkers
from quantkit.training.processes import Processes

Losses = Callable[[Tensor], Tensor]
"""The mean loss of a piece, given the numbers of its sequences."""


class Gradients:
    """Computes with `workers` of this process, and with the other processes.

    micro_batch: sequences of a piece. bfloat16: whether layers and attention compute in it.
    """

    def __init__(
        self,
        workers: TorchWorkers,
        processes: Processes,
        *,
        threads: int,
        micro_batch: int,
        device: torch.device,
        bfloat16: bool,
    ) -> None:
        self._workers = workers
        self._processes = processes
        self._threads = threads
        self._micro_batch = micro_batch
        self._device = device
        self._bfloat16 = bfloat16

    def mean(
        self, loss: Callable[[Tensor], Tensor], rows: Tensor, weights: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The mean of `loss` over all rows of the batch [rows, ...], and its gradients by `weights`.

        rows: of all processes together; each takes its share of the pieces.
        """
        pieces = torch.split(rows, self._micro_batch)
        mine = self._processes.share(pieces)
        total, sums = 0.0, [torch.zeros_like(weight) for weight in weights]

        def computed(piece: Tensor) -> tuple[float, tuple[Tensor, ...]]:
            with torch.inference_mode(mode=False), torch.enable_grad():
                with rounded_products(self._device, bfloat16=self._bfloat16):
                    found = loss(piece) * (len(piece) / len(rows))
                return float(found.detach()), torch.autograd.grad(found, weights)

        for start in range(0, len(mine), self._threads):  # no more gradients in memory than there are threads
            for value, gradients in self._workers(computed, mine[start : start + self._threads]):
                total += value
                for place, gradient in enumerate(gradients):
                    sums[place] += gradient
        self._processes.add(sums)
        return self._processes.sums([total], self._device)[0], sums

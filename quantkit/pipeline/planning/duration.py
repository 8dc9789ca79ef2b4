"""How long work takes here: what is to be done, in the unit of `quantkit.pipeline.run_work`, by how fast this machine is."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

PROBE_SIZE, PROBE_ROUNDS = 384, 15
PROBE_SECONDS = 0.00195
"""What one round of `_probe` took on the machine on which the unit was measured, with nothing else to do."""
ALONE = 0.25
"""Share of a run that one thread does while the others wait: measured on two threads."""
STARTING = {False: 0.7, True: 2.5}
"""Seconds before a command begins its work; with torch to import, and without."""


def seconds_of(work: float, *, threads: int, torch: bool = False) -> float:
    """Seconds of a command that does `work` on so many threads, if the machine goes on as it does now.

    torch: whether the command imports it.
    """
    return STARTING[torch] + work / 1000 * (ALONE + (1 - ALONE) / threads) * _slowness()


def _slowness() -> float:
    """How many times longer this machine takes than the one of the unit, measured for some hundredths of a second."""
    matrix = np.ones((PROBE_SIZE, PROBE_SIZE), np.float32)
    _probe(matrix)  # wakes threads up
    return median(_probe(matrix) for _ in range(PROBE_ROUNDS)) / PROBE_SECONDS


def _probe(matrix: np.ndarray) -> float:
    """Seconds of a matrix product and of some passes over memory, which is what quantizing consists of."""
    start = time.perf_counter()
    product = matrix @ matrix
    for _ in range(4):
        product = np.abs(product) + matrix
    return time.perf_counter() - start

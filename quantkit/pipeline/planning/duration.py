"""How long work takes here: in the unit of `quantkit.pipeline.run_work`, by how fast and how busy this machine is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.run_work import RunWork
from quantkit.protocols import Method

ROUNDING, CONVERTING = 1.2e-5, 6e-6
"""Work of a weight that is rounded to codes and packed, and of one that is written as it is and read once more."""
STARTING = 0.7
"""Seconds before a command begins to work."""
TORCH = 3.0
"""Seconds to import torch, where there is something to calibrate."""
ALONE = 0.25
"""Share of a run that one thread does while the others wait."""
PROBE_VALUES, PROBE_ROUNDS = 1 << 14, 40
PROBE_SECONDS = 5.2e-5
"""What one round of `_probe` took on the machine on which the unit was measured, with nothing else to do."""
WATCHED_SECONDS, WATCHED_BYTES = 0.12, 1 << 16


@dataclass(frozen=True, slots=True)
class Pace:
    """What this machine gives a command.

    slowness: how many times longer it takes than the machine on which the unit was measured. share: of the time of its
    threads that they run, 1 = nobody else wants the cores. threads: how many there are.
    """

    slowness: float
    share: float
    threads: int

    def seconds(self, work: float) -> float:
        """Of so much work, if the machine goes on as it does now."""
        return work / 1000 * (ALONE + (1 - ALONE) / self.threads) * self.slowness / self.share


def measured_pace(threads: int) -> Pace:
    """Measure it, for two tenths of a second."""
    values = np.linspace(-1, 1, PROBE_VALUES, dtype=np.float32)
    slowness = median(_probe(values) for _ in range(PROBE_ROUNDS)) / PROBE_SECONDS
    with ThreadPoolExecutor(threads) as pool:
        running = sum(pool.map(lambda _: _running(), range(threads)))
    return Pace(slowness, min(1.0, max(0.05, running / threads)), threads)


def run_seconds(model: Checkpoint, methods: Mapping[str, Method], options: QuantizeOptions, pace: Pace) -> float:
    """Seconds of quantizing a model, by method of every weight that is."""
    calibrated = any(method.needs_calibration for method in methods.values())
    text = options.calibration if calibrated else None
    work = RunWork(model, methods, text, fisher=options.fisher, progress=None).total
    rounding = sum(model.weights[name].size for name in methods) * ROUNDING
    return (TORCH if calibrated else STARTING) + pace.seconds(work + rounding)


def export_seconds(parameters: int, work: float, pace: Pace) -> float:
    """Seconds of writing a model of so many weights, whose units have `work` to do beside."""
    return STARTING + pace.seconds(parameters * CONVERTING + work)


def _probe(values: np.ndarray) -> float:
    """Processor seconds of arithmetic that stays on one core: a product of matrices would ask the library's threads."""
    start = time.thread_time()
    for _ in range(5):
        values = np.sqrt(np.abs(values * values + values)) + np.float32(0.5)
    return time.thread_time() - start


def _running() -> float:
    """Which share of some time this thread runs that always wants to."""
    data, start, began = bytes(WATCHED_BYTES), time.perf_counter(), time.thread_time()
    while (passed := time.perf_counter() - start) < WATCHED_SECONDS:
        hashlib.sha256(data)
    return (time.thread_time() - began) / passed

"""Which stages of the solver run: what a method chooses, free of torch so that planning can hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of `quantkit.solver.solve`. All off, damping 0.01, is the textbook's GPTQ.

    search: scale and zero point of every group minimise the error weighted by the inputs' energy.
    act_order: columns with the most energy are rounded first; groups stay where they are on disk.
    rounds: sweeps of coordinate descent over the codes, each with a closed-form refit of scales.
    damping: share of H's mean diagonal added to it.
    """

    search: bool = True
    act_order: bool = True
    rounds: int = 1
    damping: float = 0.1

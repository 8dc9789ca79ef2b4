"""GPTQ in stages: searched grids, error feedback in the order of importance, then descent on the true quadratic.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022), with everything on top of it that a standard container allows:

    search      the parameters of every group minimise the error weighted by the inputs' energy
    act_order   columns with the most energy are rounded first; groups stay where they are on disk
    rounds      sweeps of coordinate descent over the codes, each with a closed-form refit of scales
    damping     share of H's mean diagonal added to it: the paper's 0.01 keeps H invertible, more of it keeps what is
                made up for from hanging on what only the calibration text has

and, where it is known what the outputs do to the predictions, feedback from row to row.

Without any it is the textbook's algorithm: the parameters of a group are chosen when its first column is reached. Where
H cannot be factored, more and more damping is tried.

The work is done in `quantkit.solver.solve`, which needs torch; to plan with a method takes only what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quantkit.protocols import Method
from quantkit.solver.calibrated import StagedMethod
from quantkit.solver.stages import Stages


@dataclass(frozen=True, slots=True)
class Gptq(StagedMethod):
    """The method and its stages; see the module's docstring. All off, damping 0.01, is the textbook's algorithm."""

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "searched grids, error feedback, coordinate descent: needs calibration"


USUAL = Stages(rounds=3)
METHOD: Method = Gptq(USUAL, dampings=(0.3,))

"""Weights of -s, 0 and s: taken over where they lie so already, else chosen by the solver of `gptq` on three levels.

Training for three levels publishes dense files whose values happen to be ternary (BitCPM4): these are taken over code
for code, nothing is calibrated, and weights that are not ternary stay dense.

Any other model is quantized after training. Scales and codes of every group alternate until the error weighted by the
inputs' energy is least (PT2-LLM, Yan et al. 2025, without its offsets and its order of columns, which no container of
ternary codes holds). Then come error feedback with groups that stay where they are, and coordinate descent with refits
of the scales: more rounds than with more levels, because each code that changes moves its weight further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quantkit.protocols import Method
from quantkit.solver.calibrated import StagedMethod
from quantkit.solver.stages import Stages
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import TERNARY


@dataclass(frozen=True, slots=True)
class Ternary(StagedMethod):
    """The method and its stages; see the module's docstring."""

    name: ClassVar[str] = "ternary"
    summary: ClassVar[str] = "weights of -s, 0, s: taken over where they are ternary already, else calibrated"
    default_scheme: ClassVar[Scheme] = TERNARY
    takes_over: ClassVar[bool] = True


METHOD: Method = Ternary(Stages(rounds=6), dampings=(0.3,))

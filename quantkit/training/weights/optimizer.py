"""AdamW over named parameters, each with a learning rate of its own, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantkit.training.weights.student import Student

BETAS = (0.9, 0.95)
MAX_NORM = 1.0
"""Of all gradients of a step together."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Moves what is trained of the weights `names` of a student; without weight decay."""

    def __init__(self, student: Student, names: Sequence[str]) -> None:
        self.names = names
        self._parameters = list(student.parameters(names))
        groups = [{"params": [parameter.tensor], "lr": parameter.rate} for parameter in self._parameters]
        self._adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)

    def step(self, factor: float) -> float:
        """Move every parameter by its `.grad`, at `factor` times its rate.

        Returns the norm of all gradients, which it takes away.
        """
        norm = float(torch.nn.utils.clip_grad_norm_([parameter.tensor for parameter in self._parameters], MAX_NORM))
        for group, parameter in zip(self._adam.param_groups, self._parameters, strict=True):
            group["lr"] = factor * parameter.rate
        self._adam.step()
        self._adam.zero_grad()
        return norm

    def moments(self) -> dict[str, Tensor]:
        """Both moments of every parameter, those before the first step included; in memory that steps change."""
        found = {}
        for parameter in self._parameters:
            state = self._adam.state[parameter.tensor]
            for moment in _MOMENTS:
                found[f"{parameter.name}.{moment}"] = state.get(moment, torch.zeros_like(parameter.tensor))
        return found

    def restore(self, moments: Mapping[str, Tensor], steps: int) -> None:
        """Go on after so many steps."""
        for parameter in self._parameters:
            self._adam.state[parameter.tensor] = {
                "step": torch.tensor(float(steps), device=parameter.tensor.device),
                **{moment: moments[f"{parameter.name}.{moment}"] for moment in _MOMENTS},
            }

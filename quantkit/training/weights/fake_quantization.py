"""Weights that are trained through their own rounding ("fake quantization", with straight-through gradients).

Every matrix has latent weights W in float32, and what the model computes with is

    value = s * q,   q = clamp(round(W / s), low, high)

with the scale s of each group rounded to the dtype that it will be stored in: what is trained is what is exported, bit
for bit. The gradient g of a value goes past the rounding as if it were not there (Bengio et al. 2013). Two kinds:

    learned   s = s_0 exp(u), u trained as well (Esser et al. 2020, "LSQ"):
                  dW = g where W / s lies within half a step of the levels, else 0
                  du = s * sum of g * (q - W / s) within them, of g * q beyond
    derived   s follows from W, mean |W| of the group for ternary (BitCPM; Ma et al. 2024), else what covers it:
                  dW = g everywhere, and no gradient through s
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Fit, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.training.options import DERIVED

WITHIN = 0.45
"""How far from its code, in steps, a latent weight begins at most; at half a step it would be of the next code."""


def affine_scheme(name: str, scheme: Scheme) -> AffineGroups:
    """`scheme` of the weight `name`; raises `UnsupportedSpec` for one that cannot be trained."""
    if not isinstance(scheme, AffineGroups):
        raise UnsupportedSpec(
            f"{name}: training knows evenly spaced levels with an integer zero point, not {scheme}",
            hint="choose ternary, or --bits with symmetric or asymmetric groups",
        )
    return scheme


def check_scheme(name: str, scheme: Scheme, scales: str) -> None:
    """Raise `UnsupportedSpec` for a grid of the weight `name` that cannot be trained with such scales."""
    if not affine_scheme(name, scheme).symmetric and scales == DERIVED:
        raise UnsupportedSpec(
            f"{name}: scales are derived from latent weights for symmetric grids, not for {scheme}",
            hint="train learned scales, or choose symmetric groups",
        )


class FakeQuantizer(ABC):
    """One matrix. `parameters` are trained; the first, "latent", is [rows, groups, width].

    shape: (rows, cols). unit: what a learning rate for latent weights is in units of, in latent weights.
    """

    unit: Tensor

    def __init__(self, scheme: AffineGroups, shape: tuple[int, int], parameters: Mapping[str, Tensor]) -> None:
        self.scheme = scheme
        self.shape = shape
        self.parameters = dict(parameters)

    @abstractmethod
    def fit(self) -> Fit:
        """Scales, and zero points where they differ, as they are stored: [rows, groups]."""

    @abstractmethod
    def steps(self, fit: Fit) -> Tensor:
        """W / s: [rows, groups, width]."""

    @abstractmethod
    def backward(self, gradient: Tensor) -> None:
        """Set `.grad` of the parameters to what `gradient` [rows, cols] of the values makes of them."""

    def constants(self) -> list[Tensor]:
        """What training leaves alone, and values or steps depend on."""
        return [self.unit]

    def values(self) -> Tensor:
        """What the model computes with: float32 [rows, cols]."""
        fit = self.fit()
        return (_levels(self.scheme, fit, self.steps(fit)) * fit.scale[..., None]).view(self.shape)

    def exported(self) -> QuantizedTensor:
        """Codes and scales of exactly these values."""
        fit = self.fit()
        levels = _levels(self.scheme, fit, self.steps(fit))
        codes = self.scheme.codes(levels, _per_weight(fit)).to(torch.uint8).view(self.shape)
        stored = self.scheme.stored(fit)
        arrays = {
            name: stored[name].cpu().numpy().astype(dtype)
            for name, (dtype, _) in self.scheme.parameters(*self.shape).items()
        }
        return QuantizedTensor(self.scheme, codes.cpu().numpy(), arrays)


class LearnedScales(FakeQuantizer):
    """Latent weights in steps of the grid that they begin on, and the logarithm of what scales have changed by.

    Args:
        weight: the original's, float32 [rows, cols].
        start: what it has become; latent weights begin at the original's, drawn to their codes where these differ.
    """

    def __init__(self, weight: Tensor, start: QuantizedTensor) -> None:
        self.unit = torch.ones((), device=weight.device)
        scheme = affine_scheme("weight", start.scheme)
        found = scheme.fit(start.arrays)
        self._first = None if found.first is None else found.first.to(weight.device)
        self._start = torch.where(found.scale == 0, 1.0, found.scale).to(weight.device)
        levels = _start_levels(start, found).to(weight.device)
        low, high = _range(scheme, Fit(self._start, self._first))
        latent = weight.view(levels.shape) / self._start[..., None]
        least = torch.where(levels <= low, low - 0.5, levels - WITHIN)
        most = torch.where(levels >= high, high + 0.5, levels + WITHIN)
        latent = torch.minimum(torch.maximum(latent, least), most)
        super().__init__(scheme, start.shape, {"latent": latent, "scale": torch.zeros_like(self._start)})

    def fit(self) -> Fit:
        """See `FakeQuantizer`."""
        wanted = self._start * self.parameters["scale"].exp()
        fit = Fit(wanted, self._first)
        return Fit(self.scheme.rounded_scale(wanted, fit), self._first)

    def steps(self, fit: Fit) -> Tensor:
        """See `FakeQuantizer`."""
        return self.parameters["latent"] * (self._start / fit.scale)[..., None]

    def backward(self, gradient: Tensor) -> None:
        """See `FakeQuantizer`."""
        fit = self.fit()
        steps = self.steps(fit)
        low, high = _range(self.scheme, fit)
        inside = (steps >= low - 0.5) & (steps <= high + 0.5)
        grouped = gradient.reshape(steps.shape)
        residual = _levels(self.scheme, fit, steps) - steps * inside
        self.parameters["scale"].grad = (grouped * residual).sum(-1) * fit.scale
        self.parameters["latent"].grad = grouped * inside * self._start[..., None]

    def constants(self) -> list[Tensor]:
        """See `FakeQuantizer`."""
        return [self.unit, self._start, *([] if self._first is None else [self._first])]


class DerivedScales(FakeQuantizer):
    """Latent weights in their own units; their scales follow from them. For symmetric grids."""

    def __init__(self, weight: Tensor, scheme: AffineGroups) -> None:
        rows, cols = weight.shape
        latent = weight.reshape(rows, scheme.groups(cols), -1).clone()
        self.unit = latent.abs().mean()
        super().__init__(scheme, (rows, cols), {"latent": latent})

    def fit(self) -> Fit:
        """See `FakeQuantizer`."""
        magnitudes = self.parameters["latent"].abs()
        wanted = magnitudes.mean(-1) if self.scheme.ternary else magnitudes.amax(-1) / (self.scheme.span / 2)
        return Fit(self.scheme.rounded_scale(wanted, Fit(wanted)))

    def steps(self, fit: Fit) -> Tensor:
        """See `FakeQuantizer`."""
        return self.parameters["latent"] / fit.scale[..., None]

    def backward(self, gradient: Tensor) -> None:
        """See `FakeQuantizer`."""
        latent = self.parameters["latent"]
        latent.grad = gradient.reshape(latent.shape)


def derived(weight: np.ndarray, scheme: AffineGroups) -> QuantizedTensor:
    """Naive rounding: float32 `weight` (rows, cols) on scales that follow from it, for ternary BitCPM's s = mean|W|."""
    return DerivedScales(torch.from_numpy(weight), scheme).exported()


def _range(scheme: AffineGroups, fit: Fit) -> tuple[Tensor, Tensor]:
    """Lowest and highest level, [rows, groups, 1] or [1]."""
    low = fit.scale.new_full((1,), -float(scheme.midpoint)) if fit.first is None else fit.first[..., None]
    return low, low + scheme.span


def _levels(scheme: AffineGroups, fit: Fit, steps: Tensor) -> Tensor:
    low, high = _range(scheme, fit)
    return torch.minimum(torch.maximum(steps.round(), low), high)


def _per_weight(fit: Fit) -> Fit:
    return Fit(fit.scale[..., None], None if fit.first is None else fit.first[..., None])


def _start_levels(start: QuantizedTensor, fit: Fit) -> Tensor:
    rows, groups = fit.scale.shape
    codes = torch.from_numpy(start.codes.astype(np.float32)).view(rows, groups, -1)
    scheme = affine_scheme("weight", start.scheme)
    return codes - float(scheme.midpoint) if fit.first is None else codes + fit.first[..., None]

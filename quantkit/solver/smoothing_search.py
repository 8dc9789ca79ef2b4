"""Which scales to smooth with: one exponent for all layers that share their inputs, by what it does to their outputs.

With m_j = mean |x_j| over the fitting sequences, the scales are those of AWQ (Lin et al. 2023, section 3.2):

    s_j = m_j^a / sqrt(max_k m_k^a * min_k m_k^a),   a = 0, 0.05, ..., 0.95

Each a is judged with the scales as they could be applied: rounded by the norm that takes them up, and within what the
matrix before can be divided by. Some of the layers' rows are put on searched grids and rounded to nearest, and the
error is that of their outputs, each layer's against its own size, so that a layer of large outputs does not decide
alone:

    D = Q(W diag(s)) diag(1/s) - W,   Σ over layers tr(D H Dᵀ) / tr(W H Wᵀ)

The best a is taken only if choosing so pays on text that the choice has not seen: every fold is left out in turn, and
what the others choose must serve it better than none. Nothing is scaled otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.statistics import input_statistics
from quantkit.protocols import InputScales, Readers
from quantkit.solver.search import nearest_of_searched
from quantkit.solver.smoothing import folded_norm, spread
from quantkit.tensors.scheme import SCALE_LIMITS, Scheme
from quantkit.threads import torch_map

STEPS = 20
"""Exponents tried, 0 included."""
COARSE = 4
"""One exponent in so many is tried where a fold is left out: that only has to tell whether choosing pays."""
ROWS = 128
"""Rows of a layer that decide, evenly spread over it."""
SMALLEST = 1e-4
"""Of m_j^a against the largest, as in the paper's code."""
LOWEST_SCALES: Mapping[str, float] = {"float16": 2.0**-12, "bfloat16": 2.0**-12, "float32": 2.0**-124}
"""Four times the smallest normal number: searched scales may be smaller than those that cover the range."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layers:
    """Layers that share their inputs, and what comes before them."""

    rows: tuple[Tensor, ...]
    largest: tuple[Tensor, ...]
    schemes: tuple[Scheme, ...]
    before: _Norm | _Matrix
    head_dim: int

    def columns(self, scale: Tensor) -> Tensor:
        """What `scale` does to the columns of the layers: float32 [cols]."""
        return spread(self.before.applied(scale), self.rows[0].shape[1], self.head_dim)


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    weight: np.ndarray
    dtype: np.dtype

    def feasible(self, scale: Tensor) -> Tensor:
        return scale

    def applied(self, scale: Tensor) -> Tensor:
        return torch.from_numpy(folded_norm(self.weight, scale.numpy(), self.dtype)[1])


@dataclass(frozen=True, slots=True, eq=False)
class _Matrix:
    """least, most: what each of its rows can be divided by without leaving the range of its grid's scales."""

    least: Tensor
    most: Tensor

    @classmethod
    def of(cls, weight: Tensor, scheme: Scheme) -> _Matrix:
        rows, cols = weight.shape
        covering = weight.reshape(rows, scheme.groups(cols), -1).abs().amax(-1) * (2 / scheme.span)
        lowest = torch.where(covering == 0, torch.inf, covering).amin(-1) / LOWEST_SCALES[scheme.scale_dtype]
        highest = covering.amax(-1) / SCALE_LIMITS[scheme.scale_dtype][1]
        return cls(highest.clamp(max=1), lowest.clamp(min=1))

    def feasible(self, scale: Tensor) -> Tensor:
        return scale.clamp(self.least, self.most)

    def applied(self, scale: Tensor) -> Tensor:
        return scale


def chosen_scales(readers: Readers, *, threads: int = 1) -> InputScales:
    """The exponent and scales for layers that read the same inputs.

    Args:
        readers: the layers as in the checkpoint, and what feeds them, its columns scaled already where it has been
            smoothed itself.
        threads: how many to use; the result does not depend on it.
    """
    layers = _layers(readers)
    cols, device = layers.rows[0].shape[1], readers.folds[0][0].device
    hessians = [input_statistics(part, cols, threads, device).hessian.cpu().double() for part in readers.folds]
    folds = [_Fold(x, H) for x, H in zip(readers.folds, hessians, strict=True)]
    if not all(torch.isfinite(H).all() for H in hessians) or not any((H.diagonal() > 0).any() for H in hessians):
        return InputScales(0.0, None)
    search = _Search(layers, len(readers.feeding), threads)
    best, scale = search.best(folds)
    taken = best > 0 and len(folds) > 1 and all(_pays_on(fold, search, folds) for fold in folds)
    return InputScales(best / STEPS, scale.numpy()) if taken else InputScales(0.0, None)


def _pays_on(fold: _Fold, search: _Search, folds: Sequence[_Fold]) -> bool:
    """Whether the scales that are chosen without a fold serve it better than none."""
    others = [other for other in folds if other is not fold]
    if not any(bool((other.hessian.diagonal() > 0).any()) for other in others):
        return False
    best, scale = search.best(others, every=COARSE)
    plain, smoothed = search.losses((search.scales(others)[0], scale), others, fold.hessian)
    return best > 0 and smoothed < plain


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """inputs: as in `Readers`. hessian: theirs, float64."""

    inputs: Sequence[Tensor]
    hessian: Tensor


@dataclass(frozen=True, slots=True)
class _Search:
    """Over exponents, for layers behind `outputs` outputs."""

    layers: _Layers
    outputs: int
    threads: int

    def scales(self, folds: Sequence[_Fold]) -> list[Tensor]:
        """Of every exponent, by the inputs of these folds."""
        magnitude = _magnitude([x for fold in folds for x in fold.inputs], self.outputs, self.layers.head_dim)
        return [self.layers.before.feasible(_scale(magnitude, step / STEPS)) for step in range(STEPS)]

    def best(self, folds: Sequence[_Fold], every: int = 1) -> tuple[int, Tensor]:
        """The number of the exponent that serves these folds best, of `every` so many one, and its scales."""
        scales = self.scales(folds)
        losses = self.losses(scales[::every], folds, _sum(folds))
        best = every * min(range(len(losses)), key=losses.__getitem__)
        return best, scales[best]

    def losses(self, scales: Sequence[Tensor], folds: Sequence[_Fold], hessian: Tensor) -> list[float]:
        """On inputs of this H, with codes that are chosen by those of the folds."""
        energy = _sum(folds).diagonal()
        return _losses(self.layers, scales, energy / energy.max(), hessian, self.threads)


def _sum(folds: Sequence[_Fold]) -> Tensor:
    return torch.stack([fold.hessian for fold in folds]).sum(0)


def _layers(readers: Readers) -> _Layers:
    weights = [torch.from_numpy(layer.weight) for layer in readers.layers]
    feeding, scheme = readers.feeding.cpu(), readers.feeding_scheme
    return _Layers(
        rows=tuple(W[:: -(-len(W) // ROWS)].clone() for W in weights),
        largest=tuple(W.abs().amax(0) for W in weights),
        schemes=tuple(layer.scheme for layer in readers.layers),
        before=_Norm(feeding.numpy(), readers.feeding_dtype) if scheme is None else _Matrix.of(feeding, scheme),
        head_dim=readers.head_dim,
    )


def _magnitude(inputs: Sequence[Tensor], outputs: int, head_dim: int) -> Tensor:
    """Mean |x| of what each output feeds, float64 [outputs], up to a factor; query heads are averaged."""
    total = torch.stack([x.double().abs().sum(0) for x in inputs]).sum(0).cpu()
    shared = len(total) // outputs
    return total if shared == 1 else total.view(-1, shared, head_dim).mean(1).flatten()


def _scale(magnitude: Tensor, exponent: float) -> Tensor:
    """s, float32; 1 for channels that are always zero, and for all with exponent 0."""
    alive = magnitude > 0
    power = (magnitude / magnitude.max()).pow(exponent).clamp(min=SMALLEST)
    smallest = float(power[alive].min())
    return torch.where(alive, power / math.sqrt(smallest), 1.0).float()


def _losses(
    layers: _Layers, scales: Sequence[Tensor], importance: Tensor, hessian: Tensor, threads: int
) -> list[float]:
    """Σ over layers tr(D H Dᵀ) / tr(W H Wᵀ) for each of `scales`; infinite where a grid's scale would be too large."""
    powers = torch_map(lambda W: _energy(W.double(), hessian), layers.rows, threads)

    def loss(scale: Tensor) -> float:
        columns = layers.columns(scale)
        weights = (importance / columns.double().square()).float()
        total = 0.0
        for W, largest, scheme, power in zip(layers.rows, layers.largest, layers.schemes, powers, strict=True):
            if float((largest * columns).max()) * 2 / scheme.span > SCALE_LIMITS[scheme.scale_dtype][1]:
                return math.inf
            found = nearest_of_searched(W * columns, weights, scheme).dequantized()
            total += _energy(torch.from_numpy(found).double() / columns - W, hessian) / power
        return total

    return torch_map(loss, scales, threads)


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H Wᵀ), never quite zero."""
    return max(float(((weight @ hessian) * weight).sum()), 1e-300)

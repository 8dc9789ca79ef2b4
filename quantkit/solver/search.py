"""Parameters of every group by search: those that cost least, not those that cover the range.

For a group w of a row, the importance h_j of its columns (the diagonal of the inputs' Hessian) and a candidate of the
scheme, with offset o:

    minimise    Σ_j h_j (s q_j + o - w_j)²,   q_j = the level nearest to (w_j - o) / s

A candidate is judged by the levels q that it leads to, on the scale that suits them best: with v = w - o, a = Σ h v q
and b = Σ h q², s = a / b costs a² / b less than Σ h v². The best one's scale goes through this once more, rounded as it
is stored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quantkit.solver.output_error import row_chunks
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import stacked_rows
from quantkit.tensors.scheme import Fit, Scheme
from quantkit.threads import torch_map

TIE = 1 + 1e-6
"""By how much more a candidate must save. Often the mirrored levels, -s, hold the same values as s; which of the two is
taken must not hang on the last bit of a sum."""
ROW_ELEMENTS = 1 << 17
"""Weights judged at a time; small enough for the cache. Rows do not depend on each other."""


def searched_fit(weight: Tensor, importance: Tensor, scheme: Scheme) -> Fit:
    """The best parameters of every group.

    Args:
        weight: float32 [rows, cols], finite.
        importance: float32 [cols], not negative.
        scheme: how codes become weights.

    Returns:
        A settled fit, [rows, groups].
    """
    rows, cols = weight.shape
    groups = scheme.groups(cols)
    step = max(1, ROW_ELEMENTS // cols) if weight.device.type == "cpu" else rows
    # Dead columns count a little, so that a group of them still gets a sensible scale.
    weights = importance.reshape(groups, -1) / importance.max().clamp(min=1e-30) + 1e-8
    parts = [
        _best(weight[start : start + step].reshape(-1, groups, cols // groups), weights, scheme)
        for start in range(0, rows, step)
    ]
    return scheme.settled(_joined(parts))


def searched_codes(weight: np.ndarray, scheme: Scheme, energy: Tensor, threads: int) -> QuantizedTensor:
    """`nearest_of_searched` of a float32 [rows, cols] whose inputs have this energy [cols], not all of it zero."""
    importance = (energy / energy.max()).float()
    chunks = row_chunks(len(weight), energy.device)

    def nearest(start: int) -> QuantizedTensor:
        rows = torch.from_numpy(weight[start : start + chunks.step]).to(energy.device)
        return nearest_of_searched(rows, importance, scheme)

    return stacked_rows(torch_map(nearest, chunks, threads))


def nearest_of_searched(weight: Tensor, importance: Tensor, scheme: Scheme) -> QuantizedTensor:
    """Float32 `weight` [rows, cols] with the parameters that `searched_fit` finds, each weight by itself."""
    rows, cols = weight.shape
    arrays = stored_arrays(scheme, searched_fit(weight, importance, scheme), cols)
    groups = weight.cpu().numpy().reshape(rows, scheme.groups(cols), -1)
    return QuantizedTensor(scheme, scheme.nearest(groups, arrays).reshape(rows, cols), arrays)


def stored_arrays(scheme: Scheme, fit: Fit, cols: int) -> dict[str, np.ndarray]:
    """The parameters of a settled fit [rows, groups] in their own dtypes and shapes."""
    shapes = scheme.parameters(fit.scale.shape[0], cols)
    found = {name: x.cpu().numpy() for name, x in scheme.stored(fit).items()}
    return {name: found[name].astype(dtype).reshape(shape) for name, (dtype, shape) in shapes.items()}


def _joined(parts: list[Fit]) -> Fit:
    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        present = [x for x in tensors if x is not None]
        return torch.cat(present) if present else None

    scale = torch.cat([part.scale for part in parts])
    return Fit(scale, joined([part.first for part in parts]), joined([part.offset for part in parts]))


def _best(part: Tensor, importance: Tensor, scheme: Scheme) -> Fit:
    """Of weights [rows, groups, width]: the best candidate [rows, groups], its scale refitted and rounded."""
    weighted = part * importance
    best = scheme.neutral(torch.ones(part.shape[:2], device=part.device))
    most = torch.full_like(best.scale, -1.0 if best.offset is None else -torch.inf)

    def judge(fit: Fit) -> None:
        values, energy = part, weighted
        if fit.offset is not None:
            values = part - fit.offset[..., None]
            energy = values * importance
        steps = scheme.levels_of(fit.part((..., None))).nearest_(values / fit.scale[..., None])
        a = (steps * energy).sum(-1)
        b = torch.matmul(steps.square_().transpose(0, 1), importance[..., None])[..., 0].T
        gained, saved = a * a, a * a / b
        if fit.offset is not None:
            shifted = (values * energy - part * weighted).sum(-1)
            gained, saved = gained - shifted * b, saved - shifted
        better = gained > most * b * TIE
        pairs = ((most, saved), (best.scale, a / b), (best.first, fit.first), (best.offset, fit.offset))
        for kept, new in pairs:
            if kept is not None and new is not None:
                torch.where(better, new, kept, out=kept)

    for candidate in scheme.candidates(part.amin(-1), part.amax(-1)):
        judge(candidate)
    judge(_rounded(best, scheme))
    return _rounded(best, scheme)


def _rounded(fit: Fit, scheme: Scheme) -> Fit:
    """A copy with its scale as it can be stored."""
    first, offset = (None if x is None else x.clone() for x in (fit.first, fit.offset))
    return Fit(scheme.rounded_scale(fit.scale, fit), first, offset)

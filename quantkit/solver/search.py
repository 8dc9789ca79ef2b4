"""Scale and zero point of every group by search: the grid that costs least, not the one that covers the range.

For a group w of a row and the importance h_j of its columns (the diagonal of the inputs' Hessian):

    minimise over candidates (s, z)    Σ_j h_j (s * (clip(round(w_j / s) + z, 0, L - 1) - z) - w_j)²

Symmetric candidates shrink the covering scale to 40 to 105 percent with both signs: the grid -8 .. 7 has one more
level on its negative side, and a negative scale turns that side towards the larger extreme. Asymmetric candidates
shrink both ends of the range together. A candidate is judged by the steps q that it leads to, on the scale that suits
these steps best: with a = Σ h w q and b = Σ h q², s = a / b costs a² / b less than nothing at all. The best one's scale
goes through this once more. It is rounded to the dtype in which it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from quantkit.solver.output_error import row_chunks
from quantkit.tensors.quant_spec import SCALE_DTYPES, QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import SCALE_LIMITS, nearest_codes, stacked_rows
from quantkit.threads import torch_map

SHRINKS = (0.4, 0.5, 0.58, 0.65, 0.71, 0.76, 0.81, 0.85, 0.89, 0.925, 0.955, 0.98, 1.0, 1.04)
"""Shares of the covering scale that are tried."""
TIE = 1 + 1e-6
"""By how much more a candidate must save. Often the mirrored grid, -s, holds the same values as s; which of the two is
taken must not hang on the last bit of a sum."""
ROW_ELEMENTS = 1 << 17
"""Weights judged at a time; small enough for the cache. Rows do not depend on each other."""


def rounded_scale(scale: Tensor, spec: QuantSpec) -> Tensor:
    """`scale` (float32) rounded to the spec's dtype, sign kept, never zero, never infinite.

    bfloat16 scales are rounded through float16, so that both dtypes hold the result.
    """
    magnitude = scale.abs().clamp(*SCALE_LIMITS[spec.scale_dtype])
    if spec.scale_dtype != "float32":
        magnitude = magnitude.half().float()
    if spec.scale_dtype == "bfloat16":
        magnitude = magnitude.bfloat16().float()
    return torch.where(scale < 0, -magnitude, magnitude)


def step_limits(zero: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Lowest and highest step of grids with these zero points."""
    return -zero, spec.levels - 1 - zero


def searched_grid(weight: Tensor, importance: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The best scale and zero point of every group.

    Args:
        weight: float32 [rows, cols], finite.
        importance: float32 [cols], not negative.
        spec: the grid.

    Returns:
        scale and zero, float32 [rows, groups]; scale already rounded to `spec.scale_dtype`, zero integral.
    """
    rows, cols = weight.shape
    groups = spec.groups(cols)
    scale = torch.empty((rows, groups), device=weight.device)
    zero = torch.empty_like(scale)
    step = max(1, ROW_ELEMENTS // cols) if weight.device.type == "cpu" else rows
    # Dead columns count a little, so that a group of them still gets a sensible grid.
    weights = importance.reshape(groups, -1) / importance.max().clamp(min=1e-30) + 1e-8

    for start in range(0, rows, step):
        part = weight[start : start + step].reshape(-1, groups, cols // groups)
        scale[start : start + step], zero[start : start + step] = _best(part, weights, spec)
    return scale, zero


def searched_codes(weight: np.ndarray, spec: QuantSpec, energy: Tensor, threads: int) -> QuantizedTensor:
    """`nearest_on_searched_grid` of a float32 [rows, cols] whose inputs have this energy [cols], not all of it zero."""
    importance = (energy / energy.max()).float()
    chunks = row_chunks(len(weight), energy.device)

    def nearest(start: int) -> QuantizedTensor:
        rows = torch.from_numpy(weight[start : start + chunks.step]).to(energy.device)
        return nearest_on_searched_grid(rows, importance, spec)

    return stacked_rows(torch_map(nearest, chunks, threads))


def nearest_on_searched_grid(weight: Tensor, importance: Tensor, spec: QuantSpec) -> QuantizedTensor:
    """Float32 `weight` [rows, cols] on the grids that `searched_grid` finds, each weight by itself."""
    rows, cols = weight.shape
    found = [x.cpu().numpy() for x in searched_grid(weight, importance, spec)]
    scale, zero = found[0].astype(SCALE_DTYPES[spec.scale_dtype]), found[1].astype(np.uint8)
    groups = weight.cpu().numpy().reshape(rows, spec.groups(cols), -1)
    return QuantizedTensor(spec, nearest_codes(groups, scale, zero, spec).reshape(rows, cols), scale, zero)


def _best(part: Tensor, importance: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    weighted = part * importance
    best_scale = torch.ones(part.shape[:2], device=part.device)
    best_zero = torch.full_like(best_scale, float(spec.midpoint))
    most = torch.full_like(best_scale, -1.0)
    fixed = -float(spec.midpoint), float(spec.levels - 1 - spec.midpoint)  # faster than a tensor for every group

    def judge(scale: Tensor, zero: Tensor) -> None:
        low, high = fixed if spec.symmetric else step_limits(zero[..., None], spec)
        steps = torch.clamp((part / scale[..., None]).round_(), low, high)  # type: ignore[arg-type]
        a = (steps * weighted).sum(-1)
        b = torch.matmul(steps.square_().transpose(0, 1), importance[..., None])[..., 0].T
        better = a * a > most * b * TIE
        for best, new in ((most, a * a / b), (best_scale, a / b), (best_zero, zero)):
            torch.where(better, new, best, out=best)

    for scale, zero in _candidates(part, spec):
        judge(scale, zero)
    judge(rounded_scale(best_scale, spec), best_zero.clone())
    return rounded_scale(best_scale, spec), best_zero


def _candidates(part: Tensor, spec: QuantSpec) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = part.amin(-1).clamp(max=0), part.amax(-1).clamp(min=0)
    if spec.symmetric:
        covering = torch.maximum(-low, high) / ((spec.levels - 1) / 2)
        zero = torch.full_like(covering, float(spec.midpoint))
        for sign in (1.0, -1.0):
            for shrink in SHRINKS:
                yield rounded_scale(covering * (sign * shrink), spec), zero
        return
    span = (high - low) / (spec.levels - 1)
    for shrink in SHRINKS:
        scale = rounded_scale(span * shrink, spec)
        yield scale, torch.div(-low * shrink, scale).round_().clamp_(0, spec.levels - 1)

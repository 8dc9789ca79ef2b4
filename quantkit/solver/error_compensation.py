"""Targets that make up for what earlier layers lost.

A quantized layer sees X̂, the outputs of layers already quantized, where the original saw X. The weights that bring
its output closest to the original's are those of the regression of the wanted output on X̂:

    W' = W + α M H⁻¹,   H = X̂ᵀ X̂,   M = Dᵀ X̂,   D = wanted output - X̂ Wᵀ            (X rows are tokens)

For q, k, v, gate and up, D = (X - X̂) Wᵀ (GPTAQ, Li et al. 2025; Qronos, Zhang et al. 2025). The two layers that write
to the residual stream can also make up for the stream's own error: D = (X - X̂) Wᵀ + (r - r̂) / residual_scale with r
and r̂ the streams that their output is added to.

The strength α comes from sequences that the regression did not see: with one fold after the other left out, Δₖ the
regression of the rest, the error on the folds is quadratic in α, so its minimum

    α = Σₖ tr(Δₖ Mₖᵀ) / Σₖ tr(Δₖ Hₖ Δₖᵀ),   Δ = M H⁻¹

is exact; it is cut to [0, 1]. Where nothing carries over to unseen text, α is 0 and the weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantkit.calibration.drift import Drift
from quantkit.solver.cholesky import cholesky, damped
from quantkit.solver.output_error import output_energies, row_chunks
from quantkit.threads import torch_map

DAMPING = 0.03
"""Share of H's mean diagonal added to it."""
ALL = slice(None)


def of_outputs(drift: Drift, correlations: Tensor, weight: Tensor, rows: slice = ALL, threads: int = 1) -> Tensor:
    """What belongs to the outputs `rows` of a layer with `weight` [rows, cols]: [len(rows), cols].

    correlations: one of `drift.folds`, a sum of them, or a product with one, [n, cols].
    """
    if not drift.of_inputs:
        return correlations[rows]
    W = weight[rows]
    chunks = row_chunks(len(W), W.device)
    return torch.cat(torch_map(lambda start: W[start : start + chunks.step] @ correlations, chunks, threads))


def regression_factor(hessian: Tensor, threads: int = 1) -> Tensor | None:
    """L of the damped H [cols, cols], by which `quantkit.solver.cholesky.divided` makes M H⁻¹; None where it has none.

    Layers that read the same inputs share what is divided by it: W (C H⁻¹) = (W C) H⁻¹.
    """
    return cholesky(damped(hessian, DAMPING), threads)


def strength(
    deltas: Sequence[Tensor], lacking: Sequence[Tensor], hessians: Sequence[Tensor], threads: int = 1
) -> float:
    """The α in [0, 1] that serves folds best: of each, Δₖ without it, Mₖ and Hₖ on it, all float32."""
    pairs = list(zip(deltas, lacking, hessians, strict=True))
    gained = sum(float((delta * M).sum(dtype=torch.float64)) for delta, M, _ in pairs)
    spent = sum(output_energies([delta], H, threads)[0] for delta, _, H in pairs)
    return min(1.0, max(0.0, gained / spent)) if spent > 0 else 0.0

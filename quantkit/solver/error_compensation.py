"""Targets that make up for what earlier layers lost.

A quantized layer sees X̂, the outputs of layers already quantized, where the original saw X. The weights that bring
its output closest to the original's are those of the regression of the wanted output on X̂:

    W' = W + α M H⁻¹,   H = X̂ᵀ X̂,   M = Dᵀ X̂,   D = wanted output - X̂ Wᵀ            (X rows are tokens)

For q, k, v, gate and up, D = (X - X̂) Wᵀ (GPTAQ, Li et al. 2025; Qronos, Zhang et al. 2025). The two layers that write
to the residual stream can also make up for the stream's own error: D = (X - X̂) Wᵀ + (r - r̂) / residual_scale with r
and r̂ the streams that their output is added to.

The strength α comes from sequences that the regression did not see. Their error is quadratic in α, so its minimum

    α = tr(Δ Mₕᵀ) / tr(Δ Hₕ Δᵀ),   Δ = M H⁻¹

is exact; it is cut to [0, 1]. Where nothing carries over to unseen text, α is 0 and the weights stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.calibration.drift import Drift
from quantkit.solver.cholesky import cholesky, damped, divided
from quantkit.solver.output_error import output_energies, row_chunks
from quantkit.threads import torch_map

DAMPING = 0.03
"""Share of H's mean diagonal added to it."""


def of_outputs(drift: Drift, correlations: Tensor, weight: Tensor, threads: int = 1) -> Tensor:
    """What belongs to the outputs of a layer with `weight` [rows, cols]: [rows, cols].

    correlations: `drift.fitted`, `drift.held_out`, or a product with one of them, [n, cols].
    """
    if not drift.of_inputs:
        return correlations
    chunks = row_chunks(len(weight), weight.device)
    return torch.cat(torch_map(lambda start: weight[start : start + chunks.step] @ correlations, chunks, threads))


def regression(drift: Tensor, hessian: Tensor, threads: int = 1) -> Tensor | None:
    """drift H⁻¹ of correlations [n, cols], float32; None where H [cols, cols] cannot be factored.

    Layers that read the same inputs share it: W (C H⁻¹) = (W C) H⁻¹.
    """
    lower = cholesky(damped(hessian, DAMPING), threads)
    if lower is None:
        return None
    return divided(drift, lower, threads)


def strength(delta: Tensor, held_drift: Tensor, held_hessian: Tensor, threads: int = 1) -> float:
    """The α in [0, 1] that serves the held-out sequences best, all arguments float32, `delta` and M [rows, cols]."""
    gained = float((delta * held_drift).sum(dtype=torch.float64))
    (spent,) = output_energies([delta], held_hessian, threads)
    return min(1.0, max(0.0, gained / spent)) if spent > 0 else 0.0

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

from quantkit.methods._error import output_energy, row_chunks
from quantkit.methods._feedback import damped
from quantkit.parallel import torch_map


def propagated_target(
    weight: Tensor,
    hessian: Tensor,
    drift: Tensor,
    held_hessian: Tensor,
    held_drift: Tensor,
    *,
    damping: float = 0.01,
    threads: int = 1,
) -> tuple[Tensor, float]:
    """The weights to aim at, float32 [rows, cols], and the strength α that was used.

    Args:
        weight: W, float32 [rows, cols].
        hessian, drift: H [cols, cols] and M [rows, cols] of the fitting sequences, float64.
        held_hessian, held_drift: the same of the held-out sequences.
        damping: share of H's mean diagonal added to it.
        threads: how many to use; the result does not depend on it.
    """
    lower, info = torch.linalg.cholesky_ex(damped(hessian, damping))
    if int(info) != 0:
        return weight, 0.0
    chunks = row_chunks(len(drift), drift.device)
    solved = torch_map(
        lambda start: torch.cholesky_solve(drift[start : start + chunks.step].T, lower).T, chunks, threads
    )
    delta = torch.cat(solved)
    gained = float((delta * held_drift).sum())
    spent = output_energy(delta, held_hessian.float(), threads)
    strength = min(1.0, max(0.0, gained / spent)) if spent > 0 else 0.0
    return (weight.double() + strength * delta).float(), strength

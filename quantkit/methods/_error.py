"""The output error of a quantized weight, which methods report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantkit.parallel import torch_map
from quantkit.quantized import QuantizedTensor

ROW_CHUNKS = (512, 1024)
"""The fewest and the most rows worked on together; rows do not depend on each other."""
PANEL = 512
"""Columns worked on together; part of what the last bits of a result depend on."""


def row_chunks(rows: int, device: torch.device) -> range:
    """Starts of the chunks that `rows` rows are worked on in: small ones for the caches of a CPU, else all at once."""
    fewest, most = ROW_CHUNKS
    return range(0, rows, min(most, max(fewest, rows // 4)) if device.type == "cpu" else max(rows, 1))


def output_energy(change: Tensor, hessian: Tensor, threads: int = 1) -> float:
    """tr(D H Dᵀ) of a change D [rows, cols] of weights, its products in the dtype of H [cols, cols], symmetric."""
    chunks = row_chunks(len(change), hessian.device)

    def energy(start: int) -> float:
        D = change[start : start + chunks.step].to(hessian)
        total = 0.0
        for first in range(0, D.shape[1], PANEL):
            panel = slice(first, first + PANEL)
            # Every pair of panels counts twice, and is multiplied once.
            products = D[:, panel] @ hessian[panel, panel]
            products.addmm_(D[:, :first], hessian[:first, panel], alpha=2.0)
            total += float(products.mul_(D[:, panel]).sum(dtype=torch.float64))
        return total

    return max(sum(torch_map(energy, chunks, threads)), 0.0)


def weighted_energy(change: Tensor, weighted: Tensor, hessian: Tensor, threads: int = 1) -> float:
    """tr(G D H Dᵀ) of a change D and `weighted` = G D, both float32 [rows, cols]; G and H symmetric."""
    chunks = row_chunks(len(change), hessian.device)

    def energy(start: int) -> float:
        rows = slice(start, start + chunks.step)
        return float((change[rows] @ hessian).mul_(weighted[rows]).sum(dtype=torch.float64))

    return sum(torch_map(energy, chunks, threads))


def output_errors(
    weight: np.ndarray, candidates: Sequence[QuantizedTensor], hessian: Tensor, threads: int
) -> list[float]:
    """tr((W - Q) H (W - Q)ᵀ) / tr(W H Wᵀ) of every candidate Q; 0 where the inputs are all zero."""
    W, H = torch.from_numpy(weight), hessian.float()
    power = output_energy(W, H, threads)
    changes = (W - torch.from_numpy(candidate.dequantized()) for candidate in candidates)
    return [output_energy(change, H, threads) / power if power > 0 else 0.0 for change in changes]

"""The output error of a quantized weight, which methods report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quantkit.parallel import torch_map
from quantkit.quantized import QuantizedTensor

ROW_CHUNK = 512
"""Rows worked on together; rows do not depend on each other."""


def row_chunks(rows: int, device: torch.device) -> range:
    """Starts of the chunks that `rows` rows are worked on in: small ones for the caches of a CPU, else all at once."""
    return range(0, rows, ROW_CHUNK if device.type == "cpu" else max(rows, 1))


def output_energy(change: Tensor, hessian: Tensor, threads: int = 1) -> float:
    """tr(D H Dᵀ) of a change D [rows, cols] of weights, its products in the dtype of H [cols, cols]."""
    chunks = row_chunks(len(change), hessian.device)

    def energy(start: int) -> float:
        D = change[start : start + chunks.step].to(hessian)
        return float((D @ hessian).mul_(D).sum(dtype=torch.float64))

    return max(sum(torch_map(energy, chunks, threads)), 0.0)


def output_errors(
    weight: np.ndarray, candidates: Sequence[QuantizedTensor], hessian: Tensor, threads: int
) -> list[float]:
    """tr((W - Q) H (W - Q)ᵀ) / tr(W H Wᵀ) of every candidate Q; 0 where the inputs are all zero."""
    W, H = torch.from_numpy(weight), hessian.float()
    power = output_energy(W, H, threads)
    changes = (W - torch.from_numpy(candidate.dequantized()) for candidate in candidates)
    return [output_energy(change, H, threads) / power if power > 0 else 0.0 for change in changes]

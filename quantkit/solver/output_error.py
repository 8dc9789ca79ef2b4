"""The output error of a quantized weight, which methods report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.threads import torch_map

ROW_CHUNKS = (512, 1024)
"""The fewest and the most rows worked on together; rows do not depend on each other."""
PANEL = 512
"""Columns worked on together; part of what the last bits of a result depend on."""


def row_chunks(rows: int, device: torch.device) -> range:
    """Starts of the chunks that `rows` rows are worked on in: small ones for the caches of a CPU, else all at once."""
    fewest, most = ROW_CHUNKS
    return range(0, rows, min(most, max(fewest, rows // 4)) if device.type == "cpu" else max(rows, 1))


def output_energies(
    changes: Sequence[Tensor],
    hessian: Tensor,
    threads: int = 1,
    *,
    weights: Tensor | None = None,
    drift: Tensor | None = None,
) -> list[float]:
    """tr(G D H Dᵀ) - 2 tr(G D Mᵀ) of each change D [rows, cols] of weights; all float32 on one device.

    hessian: H [cols, cols], symmetric. weights: G [rows, rows], symmetric; None = 1. drift: M [rows, cols]; None = 0.
    """
    chunks = row_chunks(len(changes[0]), hessian.device)

    def energy(part: tuple[Tensor, int]) -> float:
        change, start = part
        D = change[start : start + chunks.step]
        weighted = D if weights is None else weights[start : start + chunks.step] @ change
        total = 0.0 if drift is None else -2 * _inner(weighted, drift[start : start + chunks.step])
        for first in range(0, D.shape[1], PANEL):
            panel = slice(first, first + PANEL)
            # Every pair of panels counts twice, and is multiplied once.
            products = D[:, panel] @ hessian[panel, panel]
            products.addmm_(D[:, :first], hessian[:first, panel], alpha=2.0)
            total += _inner(products, weighted[:, panel])
        return total

    found = torch_map(energy, product(changes, chunks), threads)
    return [sum(found[i : i + len(chunks)]) for i in range(0, len(found), len(chunks))]


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def changes_of(weight: Tensor, candidates: Sequence[QuantizedTensor], threads: int) -> list[Tensor]:
    """Q - W of every candidate Q for float32 W [rows, cols], on its device."""
    changes = [torch.empty_like(weight) for _ in candidates]
    chunks = row_chunks(len(weight), weight.device)

    def subtract(part: tuple[tuple[QuantizedTensor, Tensor], int]) -> None:
        (candidate, change), start = part
        rows = slice(start, start + chunks.step)
        values = torch.from_numpy(candidate.part(rows).dequantized()).to(weight.device)
        torch.sub(values, weight[rows], out=change[rows])

    torch_map(subtract, product(zip(candidates, changes, strict=True), chunks), threads)
    return changes


def output_errors(
    weight: np.ndarray, candidates: Sequence[QuantizedTensor], hessian: Tensor, threads: int
) -> list[float]:
    """tr((W - Q) H (W - Q)ᵀ) / tr(W H Wᵀ) of every candidate Q; 0 where the inputs are all zero."""
    W = torch.from_numpy(weight).to(hessian.device)
    power, *lost = output_energies([W, *changes_of(W, candidates, threads)], hessian.float(), threads)
    return [max(energy, 0.0) / power if power > 0 else 0.0 for energy in lost]

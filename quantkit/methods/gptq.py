"""GPTQ: round the columns one by one, and let the columns not yet rounded make up for each error.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022), algorithm 1, without act-order. With H = X Xᵀ (damped) and H⁻¹ = Uᵀ U, U upper triangular:

    q_i = nearest grid point of w_i;  e_i = (w_i - q_i) / U_ii;  w_j -= e_i U_ij  for j > i      column by column

The paper's U is obtained without inverting H: with its rows and columns in reverse order H is L Lᵀ, L lower
triangular, and L⁻¹ in reverse order is U. A group's scale and zero are chosen when its first column is reached, from
the weights as updated until then. Columns whose inputs are always zero are coupled to nothing and round to nearest.

Weights are float32, H and its factors float64. Rows do not depend on each other and are worked on in fixed chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import BadOption, NonFiniteValues, ValueOutOfRange
from quantkit.grid import fitted_grid, require_finite, stacked_rows
from quantkit.methods import rtn
from quantkit.parallel import single_threaded_torch, torch_map
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.spec import SCALE_DTYPES, QuantSpec

if TYPE_CHECKING:
    from quantkit.calibration import InputStatistics

BLOCK_COLUMNS = 128
"""Columns after which the rest of the matrix is updated in one product (the paper's lazy batch)."""
ROW_CHUNK = 512
PANEL = 512
DAMPING = (0.01, 0.1, 1.0)
"""Tried in turn, as a share of H's mean diagonal, until H can be factored."""


class Gptq:
    """Textbook GPTQ."""

    name = "gptq"
    summary = "error feedback along the inputs' correlations: needs calibration and torch"
    needs_calibration = True

    def quantize(
        self, weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None, *, threads: int = 1
    ) -> tuple[QuantizedTensor, TensorReport]:
        """See `quantkit.protocols.Method`.

        A Hessian that is not finite or cannot be factored gives round-to-nearest, and the report says so.

        Raises:
            BadOption: no statistics.
            UnsupportedSpec, NonFiniteValues, ValueOutOfRange: as `quantkit.grid.round_to_nearest`.
        """
        if statistics is None:
            raise BadOption("gptq needs statistics of the inputs")
        require_finite(weight)
        spec.groups(weight.shape[1])
        with single_threaded_torch(), torch.inference_mode():
            hessian = torch.from_numpy(statistics.hessian)
            factor, refusal = _inverse_factor(hessian, threads)
            if factor is not None:
                try:
                    quantized = _solved(weight, factor, spec, threads)
                    return quantized, TensorReport(_output_error(weight, quantized.dequantized(), hessian, threads))
                except (NonFiniteValues, ValueOutOfRange):
                    refusal = f"error feedback drove weights beyond {spec.scale_dtype} scales"
            quantized, report = rtn.METHOD.quantize(weight, spec, None, threads=threads)
            return quantized, TensorReport(report.error, fallback=refusal)


def _inverse_factor(hessian: Tensor, threads: int) -> tuple[Tensor | None, str | None]:
    """Upper triangular U [cols, cols] in float32 with H⁻¹ = Uᵀ U, or None and the reason why there is none."""
    if not bool(torch.isfinite(hessian).all()):
        return None, "the calibration inputs hold NaN or infinity"
    for damping in DAMPING:
        lower = _flipped_factor(hessian, damping)
        factor = _flipped_inverse(lower, threads) if lower is not None else None
        if factor is not None and bool(torch.isfinite(factor).all()):
            return factor, None
    return None, f"the Hessian cannot be factored, even with damping {DAMPING[-1]:g}"


def _flipped_factor(hessian: Tensor, damping: float) -> Tensor | None:
    """Lower triangular L with L Lᵀ = the damped H, its rows and columns in reverse order; None where there is none."""
    flipped = hessian.flip(0, 1)
    dead = flipped.diagonal() == 0
    flipped.diagonal().add_(damping * float(flipped.diagonal().mean()))
    flipped.diagonal()[dead] = 1.0
    lower, info = torch.linalg.cholesky_ex(flipped)
    return lower if int(info) == 0 else None


def _flipped_inverse(lower: Tensor, threads: int) -> Tensor:
    """L⁻¹ with rows and columns in reverse order, float32: by panels of columns that do not depend on each other."""
    cols = lower.shape[0]
    inverse = torch.zeros((cols, cols), dtype=torch.float32)

    def solve(start: int) -> None:
        stop = min(start + PANEL, cols)
        unit = torch.zeros((cols - start, stop - start), dtype=torch.float64).fill_diagonal_(1.0)
        panel = torch.linalg.solve_triangular(lower[start:, start:], unit, upper=False)
        inverse[: cols - start, cols - stop : cols - start] = panel.flip(0, 1)

    torch_map(solve, range(0, cols, PANEL), threads)
    return inverse


def _solved(weight: np.ndarray, U: Tensor, spec: QuantSpec, threads: int) -> QuantizedTensor:
    def solve(start: int) -> QuantizedTensor:
        return _solved_rows(weight[start : start + ROW_CHUNK], U, spec)

    return stacked_rows(torch_map(solve, range(0, len(weight), ROW_CHUNK), threads))


def _solved_rows(weight: np.ndarray, U: Tensor, spec: QuantSpec) -> QuantizedTensor:
    """Algorithm 1 on some rows, which lie along the last axis of every matrix in here."""
    rows, cols = weight.shape
    width = spec.group_width(cols)
    W = torch.from_numpy(weight).T.clone(memory_format=torch.contiguous_format)
    steps = torch.empty((cols, rows))
    scale = np.empty((cols // width, rows), SCALE_DTYPES[spec.scale_dtype])
    zero = np.empty(scale.shape, np.uint8)
    for start, stop in _column_blocks(cols, width):
        E = torch.empty((stop - start, rows))
        for i in range(start, stop):
            if i % width == 0:
                group = i // width
                scale[group], zero[group] = fitted_grid(W[i : i + width].numpy().T, spec)
                s = torch.from_numpy(scale[group].astype(np.float32))
                lowest = -torch.from_numpy(zero[group].astype(np.float32))
                highest = lowest + (spec.levels - 1)
            torch.div(W[i], s, out=steps[i]).round_().clamp_(lowest, highest)
            e = torch.addcmul(W[i], s, steps[i], value=-1.0).div_(U[i, i])
            W[i + 1 : stop].addr_(U[i, i + 1 : stop], e, alpha=-1.0)
            E[i - start] = e
        W[stop:].addmm_(U[start:stop, stop:].T, E, alpha=-1.0)
    codes = steps.numpy().reshape(len(zero), width, rows) + zero[:, None].astype(np.float32)
    return QuantizedTensor(
        spec,
        np.ascontiguousarray(codes.reshape(cols, rows).T.astype(np.uint8)),
        np.ascontiguousarray(scale.T),
        np.ascontiguousarray(zero.T),
    )


def _column_blocks(cols: int, width: int) -> Iterator[tuple[int, int]]:
    """Blocks of at most `BLOCK_COLUMNS` columns that contain whole groups, or lie within one."""
    span = max(width, BLOCK_COLUMNS // width * width)
    for first in range(0, cols, span):
        last = min(first + span, cols)
        for start in range(first, last, BLOCK_COLUMNS):
            yield start, min(start + BLOCK_COLUMNS, last)


def _output_error(weight: np.ndarray, quantized: np.ndarray, hessian: Tensor, threads: int) -> float:
    """tr((W - Q) H (W - Q)ᵀ) / tr(W H Wᵀ); 0 where the inputs are all zero."""
    # x H xᵀ = 2 x T xᵀ with T = the upper triangle of H and half its diagonal: half the work.
    triangle = hessian.triu()
    triangle.diagonal().mul_(0.5)

    def energies(start: int) -> tuple[float, float]:
        part = slice(start, start + ROW_CHUNK)
        W = torch.from_numpy(weight[part]).double()
        D = W - torch.from_numpy(quantized[part])
        return _quadratic(D, triangle), _quadratic(W, triangle)

    parts = torch_map(energies, range(0, len(weight), ROW_CHUNK), threads)
    damage, power = (sum(values) for values in zip(*parts, strict=True))
    return max(damage, 0.0) / power if power > 0 else 0.0


def _quadratic(X: Tensor, triangle: Tensor) -> float:
    total = 0.0
    for start in range(0, X.shape[1], PANEL):
        stop = start + PANEL
        total += float(((X[:, :stop] @ triangle[:stop, start:stop]) * X[:, start:stop]).sum())
    return 2.0 * total


METHOD: Method = Gptq()

"""The statistics of a layer's inputs against sums of outer products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantkit.calibration.statistics import cross_products, input_statistics


@pytest.mark.parametrize("cols", [7, 512, 1100])
def test_the_hessian_is_the_sum_of_outer_products(cols: int):
    inputs = [torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) for rows in (1, 20, 33)]
    statistics = input_statistics(inputs, cols)
    x = torch.cat(inputs).numpy().astype(np.float64)
    assert statistics.tokens == 54
    assert statistics.hessian.dtype == torch.float32
    assert torch.equal(statistics.hessian, statistics.hessian.T)
    rounding = len(x) * 2.0**-24 * (np.abs(x).T @ np.abs(x))  # what float32 products may lose at most
    assert (np.abs(statistics.hessian.numpy() - x.T @ x) <= rounding).all()
    assert statistics.hessian.numpy().tobytes() == input_statistics(inputs, cols, threads=2).hessian.numpy().tobytes()


def test_cross_products_are_sums_of_outer_products():
    pairs = [(torch.randn(n, 5), torch.randn(n, 600)) for n in (3, 8)]
    expected = sum(a.double().T @ b.double() for a, b in pairs)
    rounding = 8 * 2.0**-24 * sum(a.double().abs().T @ b.double().abs() for a, b in pairs)
    found = cross_products([a for a, _ in pairs], [b for _, b in pairs])
    assert ((found - expected).abs() <= rounding).all()


def test_torch_threads_are_restored():
    before = torch.get_num_threads()
    input_statistics([torch.ones(2, 2)], 2)
    assert torch.get_num_threads() == before

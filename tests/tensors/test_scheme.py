"""The ends of groups, by halving."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.tensors.rounding import energy
from quantkit.tensors.scheme import extremes


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 32, 96, 128, 4096])
def test_extremes_are_the_lowest_and_the_highest_of_every_group(width: int) -> None:
    groups = np.random.default_rng(width).standard_normal((7, 3, width)).astype(np.float32)
    low, high = extremes(groups)
    np.testing.assert_array_equal(low, groups.min(axis=-1))
    np.testing.assert_array_equal(high, groups.max(axis=-1))


def test_energy_adds_in_float64() -> None:
    values = np.full((3, 1 << 20), 0.1, np.float32)
    assert energy(values) == pytest.approx(values.size * float(np.float32(0.1)) ** 2, rel=1e-12)

"""Smoothing undone and applied: each is the other's inverse, and applied is what the solver does to a block."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.models.loading import load_block
from quantkit.models.spec import NORM_ROLES
from quantkit.pipeline.weight_errors import WeightErrors
from quantkit.solver.smoothing import smooth
from tests.support.outliers import outlier_model
from tests.support.quantized_models import BF16
from tests.support.smoothing import random_scales


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_smoothed_source_is_what_the_solver_makes_of_every_block(kv_heads: int) -> None:
    source = outlier_model(dtype=BF16, num_key_value_heads=kv_heads)
    errors = WeightErrors(source)
    blocks = []
    for layer in range(source.spec.num_hidden_layers):
        block = load_block(source, layer)
        scales = random_scales(block, seed=layer)
        norms = smooth(block, scales, dict.fromkeys(NORM_ROLES, BF16))
        named = {source.spec.weight_name(layer, role): values for role, values in norms.items()}
        errors.smoothed(layer, scales, named)
        blocks.append(block)
    found = errors.smoothed_source()
    for slot in source.spec.slots():
        view = found.weights[slot.name]
        values = np.concatenate([view.fetch(0, 1), view.fetch(1, view.rows)]) if view.rows > 1 else view.read()
        if slot.layer is None or len(slot.shape) == 1:
            np.testing.assert_array_equal(values, source.weights[slot.name].read())
        else:
            wanted = blocks[slot.layer].weight(slot.role).numpy()
            np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=0)


def test_a_source_that_was_not_smoothed_is_itself() -> None:
    source = outlier_model()
    assert WeightErrors(source).smoothed_source().weights == source.weights

"""Digests of values: the same for the same numbers, whatever holds them, and rounded as casts round."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from quantkit.tensors.digests import ROUNDINGS, RoundedDigests, values_digest


def test_every_rounding_is_the_cast_of_its_dtypes():
    """All exponents, ties of both dtypes, subnormals and zeros of both signs."""
    random = np.random.default_rng(0)
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 0.0, -0.0, 6e-8, 1e-40], np.float32)
    values = np.concatenate([ties, (random.standard_normal(4000) * 2.0 ** random.integers(-40, 15, 4000)).astype("f4")])
    digests = RoundedDigests()
    digests.update(values[:100])
    digests.update(values[100:])
    bfloat16 = values.astype(ml_dtypes.bfloat16)
    expected = {
        "float32": values,
        "bfloat16": bfloat16,
        "float16": values.astype(np.float16),
        "bfloat16, then float16": bfloat16.astype(np.float16),
    }
    assert digests.digests() == {name: values_digest([held]) for name, held in expected.items()}
    assert expected.keys() == ROUNDINGS.keys()


def test_the_digest_depends_on_numbers_and_not_on_what_holds_them():
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    halves = values.astype(np.float16)
    assert values_digest([values]) == values_digest([halves[:3], halves[3:]])
    assert values_digest([values]) != values_digest([values.T])

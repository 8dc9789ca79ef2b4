"""`QuantizedTensor`: every line of its contract is held, and its one formula is the textbook's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, QuantkitError, UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups

SPEC = AffineGroups(bits=4, group_size=2, symmetric=False)


def parts(**changes: Any) -> dict[str, Any]:
    """The arrays of a lawful 2 x 4 tensor with two groups per row, with `changes`."""
    found = {
        "scheme": SPEC,
        "codes": np.array([[0, 15, 8, 7], [1, 2, 3, 4]], np.uint8),
        "scale": np.array([[0.5, -2.0], [0.0, 0.25]], np.float16),
        "zero": np.array([[8, 0], [15, 1]], np.uint8),
        **changes,
    }
    return {"arrays": {name: found.pop(name) for name in ("scale", "zero")}, **found}


def test_a_weight_is_scale_times_code_minus_zero() -> None:
    weight = QuantizedTensor(**parts()).dequantized()
    assert weight.dtype == np.float32
    assert weight.tolist() == [[-4.0, 3.5, -16.0, -14.0], [0.0, 0.0, 0.5, 0.75]]


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("group_size", [8, 32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantized_equals_a_loop_over_exact_products(bits: int, group_size: int, scale_dtype: str) -> None:
    spec = AffineGroups(bits=bits, group_size=group_size, symmetric=False, scale_dtype=scale_dtype)
    rng = np.random.default_rng(bits)
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[scale_dtype]
    codes, zero = (rng.integers(0, 2**bits, (3, n)).astype(np.uint8) for n in (64, spec.groups(64)))
    scale = rng.standard_normal(zero.shape).astype(dtype)
    weight = QuantizedTensor(spec, codes, {"scale": scale, "zero": zero}).dequantized()
    width = 64 if group_size == -1 else group_size
    for row, col in np.ndindex(3, 64):
        group = col // width
        exact = float(scale[row, group]) * (int(codes[row, col]) - int(zero[row, group]))  # exact in float64
        assert weight[row, col] == np.float32(exact)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"scale": np.ones((2, 1), np.float16)}, UnsupportedSpec, "need scale"),
        ({"zero": np.ones((1, 2), np.uint8)}, UnsupportedSpec, "need zero"),
        ({"codes": np.ones((2, 4), np.int8)}, UnsupportedSpec, "must be uint8"),
        ({"zero": np.ones((2, 2), np.int32)}, UnsupportedSpec, "need zero .* in uint8"),
        ({"scale": np.ones((2, 2), np.float32)}, UnsupportedSpec, "need scale .* in float16"),
        ({"codes": np.full((2, 4), 16, np.uint8)}, UnsupportedSpec, "exceeds 15"),
        ({"zero": np.full((2, 2), 16, np.uint8)}, UnsupportedSpec, "exceeds 15"),
        ({"codes": np.ones((2, 3), np.uint8)}, UnsupportedSpec, "not a multiple of group_size 2"),
        ({"scheme": AffineGroups(bits=4, group_size=2)}, UnsupportedSpec, "zero point other than 8"),
        ({"scale": np.array([[1, np.nan], [1, 1]], np.float16)}, NonFiniteValues, "NaN or infinite"),
        ({"scale": np.array([[1, np.inf], [1, 1]], np.float16)}, NonFiniteValues, "NaN or infinite"),
    ],
)
def test_arrays_that_break_the_contract_are_refused(
    changes: dict[str, Any], error: type[QuantkitError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        QuantizedTensor(**parts(**changes))


def test_the_shape_is_that_of_the_matrix() -> None:
    assert QuantizedTensor(**parts()).shape == (2, 4)

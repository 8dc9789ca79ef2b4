"""Narrow symmetric codes in more bits: the same weights, the same digest, and nothing else is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantkit.errors import UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.tensors.widening import widened, widened_tensor, widened_view, widened_weights, wider_view
from tests.support.quantized_models import random_quantized

TERNARY = AffineGroups(bits=2, group_size=32, ternary=True)
INT3, ASYM3 = AffineGroups(bits=3, group_size=32), AffineGroups(bits=3, group_size=32, symmetric=False)


def test_ternary_codes_move_from_a_midpoint_of_1_to_that_of_the_wider_codes() -> None:
    """-1, 0 and 1 times the scale; by hand."""
    tensor = QuantizedTensor(
        AffineGroups(bits=2, group_size=3, ternary=True),
        np.array([[0, 1, 2]], np.uint8),
        {"scale": np.array([[0.5]], np.float16), "zero": np.array([[1]], np.uint8)},
    )
    for bits, codes, zero in ((2, [1, 2, 3], 2), (4, [7, 8, 9], 8), (8, [127, 128, 129], 128)):
        wide = widened_tensor(tensor, bits)
        assert (wide.scheme.bits, wide.codes.tolist(), wide.zero.tolist()) == (bits, [codes], [[zero]])
        assert wide.dequantized().tolist() == [[-0.5, 0, 0.5]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("settings", [{"bits": 2, "ternary": True}, *({"bits": bits} for bits in range(2, 9))], ids=str)
def test_every_wider_tensor_has_the_same_weights_and_digest(settings: dict[str, Any], dtype: str) -> None:
    scheme = AffineGroups(group_size=32, scale_dtype=dtype, **settings)
    tensor = random_quantized((24, 96), scheme, 1)
    for bits in range(scheme.bits, 9):
        wide = widened_tensor(tensor, bits)
        assert wide.scheme == AffineGroups(bits=bits, group_size=32, scale_dtype=dtype) == widened(scheme, bits)
        assert np.array_equal(wide.dequantized().view(np.uint32), tensor.dequantized().view(np.uint32))
        assert wide.numbers_digest() == tensor.numbers_digest()


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [(ASYM3, 4), (AffineGroups(bits=8, group_size=32), 4), (TERNARY, 1), (OffsetGroups(bits=4, group_size=32), 8)],
    ids=str,
)
def test_what_is_not_symmetric_or_has_more_bits_is_refused_by_name(scheme: Any, bits: int) -> None:
    view = QuantizedView("model.norm", (1, 32), scheme, lambda: random_quantized((1, 32), INT3, 0))
    with pytest.raises(UnsupportedSpec, match=f"model.norm: {scheme} cannot be stored in symmetric codes of {bits} b"):
        widened_view(view, bits)


def test_of_many_weights_the_narrow_symmetric_ones_change_when_they_are_read() -> None:
    schemes = {"ternary": TERNARY, "three": INT3, "asym": ASYM3, "four": AffineGroups(bits=4, group_size=32)}
    views = {name: view_of(name, scheme) for name, scheme in schemes.items()}
    weights = {**views, "dense": TensorView("dense", np.dtype(np.float32), (4,), lambda start, stop: np.zeros(4))}
    made = widened_weights(weights, 4)
    assert {name: str(w.scheme) for name, w in made.items() if isinstance(w, QuantizedView)} == {
        "ternary": "int4 g32 sym", "three": "int4 g32 sym", "asym": "int3 g32 asym", "four": "int4 g32 sym",
    }  # fmt: skip
    assert [name for name in weights if made[name] is weights[name]] == ["asym", "four", "dense"]
    changed = made["ternary"]
    assert isinstance(changed, QuantizedView)
    assert np.array_equal(changed.read().dequantized(), views["ternary"].read().dequantized())
    assert widened_weights(weights, 4, without=["three"])["three"] is weights["three"]


def test_ternary_codes_become_plain_ones_of_two_bits_only_where_they_must() -> None:
    weights = {"w": view_of("w", TERNARY)}
    assert str(scheme_of(widened_weights(weights, 2)["w"])) == "int2 g32 sym"
    assert widened_weights(weights, 2, keeps_ternary=True)["w"] is weights["w"]
    assert str(scheme_of(widened_weights(weights, 3, keeps_ternary=True)["w"])) == "int3 g32 sym"


def view_of(name: str, scheme: AffineGroups) -> QuantizedView:
    tensor = random_quantized((8, 64), scheme, 2)
    return QuantizedView(name, tensor.shape, scheme, lambda: tensor)


def scheme_of(weight: Any) -> Any:
    assert isinstance(weight, QuantizedView)
    return weight.scheme


@pytest.mark.parametrize("offset", [False, True])
def test_codes_without_a_midpoint_stay_what_they_are_in_more_bits(offset: bool) -> None:
    tensor = random_quantized((6, 64), ASYM3, 1)
    scheme: Any = ASYM3
    if offset:
        scheme = OffsetGroups(bits=3, group_size=32)
        zero = tensor.arrays["zero"].astype(np.float16)
        tensor = QuantizedTensor(scheme, tensor.codes, {"scale": tensor.scale, "offset": -tensor.scale * zero})
    wide = wider_view(QuantizedView("w", tensor.shape, scheme, lambda: tensor), 8).read()
    assert wide.scheme.bits == 8
    assert np.array_equal(wide.codes, tensor.codes)
    assert np.array_equal(wide.dequantized().view(np.uint32), tensor.dequantized().view(np.uint32))
    assert wide.numbers_digest() == tensor.numbers_digest()

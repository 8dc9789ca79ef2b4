"""The laws of schemes, held by every one in the folder."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from quantkit import discovery
from quantkit.errors import UnsupportedSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import ROOM, Scheme, scheme_from_json
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups

ROWS, COLS = 24, 256
SETTINGS: dict[str, list[dict[str, object]]] = {
    "affine-groups": [{}, {"symmetric": False}, {"bits": 2, "ternary": True}, {"scale_dtype": "bfloat16"}],
    "offset-groups": [{}, {"bits": 2}, {"scale_dtype": "float32"}],
    "codebook": [{}, {"table": "fp4", "powers": True, "scale_dtype": "float32"}],
    "super-blocks": [
        {"scale_bits": 6, "minima": True},
        {"scale_bits": 4, "minima": True, "bits": 2, "group_size": 16},
        {"scale_bits": 6, "minima": False, "bits": 3, "group_size": 16},
        {"scale_bits": 8, "minima": False, "bits": 6, "group_size": 16},
        {"scale_bits": 6, "minima": False, "table": "iq4-nl"},
    ],
}
"""Settings to try beside the plain ones; a scheme that is not named here is tried as it comes."""
EVERY = [
    scheme_from_json({"kind": kind, "bits": 4, "group_size": 32, **settings})
    for kind in discovery.names(ROOM)
    for settings in SETTINGS.get(kind, [{}])
]


def weights(seed: int = 0) -> np.ndarray:
    """Groups that are ordinary, far from zero, alike, all zero, and tiny."""
    made = np.random.default_rng(seed).standard_normal((ROWS, COLS)).astype(np.float32)
    made[1] += 5
    made[2] = 0.25
    made[3] = 0
    made[4] *= 1e-6
    return made


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_a_scheme_is_data(scheme: Scheme) -> None:
    assert scheme_from_json(json.loads(json.dumps(scheme.to_json()))) == scheme
    assert hash(scheme) == hash(scheme.with_settings())
    if scheme.kind in ("affine-groups", "offset-groups"):
        assert scheme.with_settings(group_size=-1).group_width(COLS) == COLS
    with pytest.raises(FrozenInstanceError):
        scheme.bits = 8  # type: ignore[misc]
    with pytest.raises(UnsupportedSpec, match="no such setting"):
        scheme.with_settings(colour="red")


@pytest.mark.parametrize("scheme", [scheme for scheme in EVERY if not getattr(scheme, "table", "")], ids=str)
def test_values_are_scale_times_level_plus_offset(scheme: Scheme) -> None:
    """With codes one apart the values of uniform schemes are one scale apart, and code 0 is the offset."""
    tensor = round_to_nearest(weights(), scheme)
    scale, offset = scheme.effective(tensor.arrays)
    wanted = offset[:, :, None] + scale[:, :, None] * tensor.codes.reshape(ROWS, -1, scheme.group_size).astype(
        np.float64
    )
    found = tensor.dequantized().reshape(ROWS, -1, scheme.group_size)
    reach = np.abs(scale[:, :, None]) * 2**scheme.bits + np.abs(offset[:, :, None])
    assert (np.abs(found - wanted) <= 2.0**-22 * reach).all()


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_weights_grow_with_the_factors_that_a_scheme_names(scheme: Scheme) -> None:
    tensor = round_to_nearest(weights(), scheme)
    doubled = {name: tensor.arrays[name] * np.float16(2) for name in scheme.factors if name in tensor.arrays}
    assert doubled
    arrays = {name: values.astype(tensor.arrays[name].dtype) for name, values in doubled.items()}
    other = QuantizedTensor(scheme, tensor.codes, {**tensor.arrays, **arrays})
    assert np.array_equal(other.dequantized(), 2 * tensor.dequantized())


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_a_rounded_weight_has_no_nearer_code(scheme: Scheme) -> None:
    weight = weights()
    tensor = round_to_nearest(weight, scheme)
    distance = np.abs(tensor.dequantized() - weight)
    for code in range(getattr(scheme, "levels", 2**scheme.bits)):
        other = QuantizedTensor(scheme, np.full_like(tensor.codes, code), tensor.arrays)
        assert (distance <= np.abs(other.dequantized() - weight) + 1e-6 * np.abs(weight)).all()
    without_zero = getattr(scheme, "table", "") == "iq4-nl"
    assert np.abs(tensor.dequantized()[3]).max() <= (2.0**-20 if without_zero else 0)


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_a_fit_is_stored_and_comes_back(scheme: Scheme) -> None:
    tensor = round_to_nearest(weights(), scheme)
    fit = scheme.fit(tensor.arrays)
    for name, values in scheme.stored(fit).items():
        assert np.array_equal(values.numpy(), tensor.arrays[name].astype(np.float32)), name
    grouped = torch.from_numpy(weights()).view(ROWS, -1, scheme.group_size)
    part = fit.part((..., None))
    shifted = grouped if part.offset is None else grouped - part.offset
    levels = scheme.levels_of(part).nearest_(shifted / part.scale)
    codes = scheme.codes(levels, part).view(ROWS, COLS).to(torch.uint8).numpy()
    assert (codes == tensor.codes).mean() > 0.999  # a tie may fall to either side


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_a_digest_is_that_of_the_numbers(scheme: Scheme) -> None:
    tensor = round_to_nearest(weights(), scheme)
    assert tensor.numbers_digest() == round_to_nearest(weights(), scheme).numbers_digest()
    codes = tensor.codes.copy()
    codes[0, 0] ^= 1
    assert QuantizedTensor(scheme, codes, tensor.arrays).numbers_digest() != tensor.numbers_digest()
    name = "d" if scheme.kind == "super-blocks" else "scale"
    scale = tensor.arrays[name].copy()
    scale[5] *= 2
    assert QuantizedTensor(scheme, tensor.codes, {**tensor.arrays, name: scale}).numbers_digest() != (
        tensor.numbers_digest()
    )


def test_a_digest_does_not_depend_on_how_a_zero_point_is_held() -> None:
    affine = round_to_nearest(weights(), AffineGroups(bits=4, group_size=32))
    scale, offset = affine.scheme.effective(affine.arrays)
    held = {"scale": scale.astype(np.float16), "offset": offset.astype(np.float16)}
    offsets = QuantizedTensor(OffsetGroups(bits=4, group_size=32), affine.codes, held)
    assert np.array_equal(offsets.arrays["offset"], offset), "these offsets are float16 numbers"
    assert offsets.numbers_digest() == affine.numbers_digest()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_digest_of_what_q4_1_holds_of_a_grid_is_the_grids(symmetric: bool) -> None:
    """Offsets that are whole steps, alike in all groups or not; float32, as float16 holds few of them."""
    affine = round_to_nearest(weights(), AffineGroups(bits=4, group_size=32, symmetric=symmetric))
    scale, offset = affine.scheme.effective(affine.arrays)
    offsets = QuantizedTensor(
        OffsetGroups(bits=4, group_size=32, scale_dtype="float32"), affine.codes, {"scale": scale, "offset": offset}
    )
    assert offsets.numbers_digest() == affine.numbers_digest()


def test_a_digest_does_not_depend_on_how_wide_the_groups_are_stored() -> None:
    tensor = round_to_nearest(weights(), AffineGroups(bits=3, group_size=64))
    finer = QuantizedTensor(
        AffineGroups(bits=3, group_size=16),
        tensor.codes,
        {name: np.repeat(values, 4, axis=1) for name, values in tensor.arrays.items()},
    )
    assert finer.numbers_digest() == tensor.numbers_digest()
    finer.arrays["scale"][2, 3] *= 2
    assert finer.numbers_digest() != tensor.numbers_digest()


def test_a_digest_does_not_depend_on_scales_of_nothing_but_zeros() -> None:
    scheme = AffineGroups(bits=2, group_size=4, ternary=True)
    codes = np.array([[1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 2, 1, 1]], np.uint8)
    tensors = [
        QuantizedTensor(scheme, codes, {"scale": np.array(scale, np.float16), "zero": np.ones((2, 2), np.uint8)})
        for scale in ([[3, 1], [0, 3]], [[3, 3], [3, 3]], [[3, 1], [0, 4]])
    ]
    halves = QuantizedTensor(
        AffineGroups(bits=2, group_size=2, ternary=True),
        codes,
        {"scale": np.array([[9, 3, 0, 7], [1, 5, 3, 3]], np.float16), "zero": np.ones((2, 4), np.uint8)},
    )
    one, same, other = (tensor.numbers_digest() for tensor in tensors)
    assert one == same == halves.numbers_digest() != other
    empty = QuantizedTensor(scheme, np.ones_like(codes), tensors[0].arrays)
    assert empty.numbers_digest() == QuantizedTensor(scheme, np.ones_like(codes), tensors[2].arrays).numbers_digest()


def test_a_scale_that_moves_to_another_group_or_row_changes_the_digest() -> None:
    scheme, codes = AffineGroups(bits=2, group_size=2, ternary=True), np.full((2, 4), 2, np.uint8)
    zero = np.ones((2, 2), np.uint8)
    digests = {
        QuantizedTensor(scheme, codes, {"scale": np.array(scale, np.float16), "zero": zero}).numbers_digest()
        for scale in ([[1, 1], [2, 2]], [[1, 2], [2, 2]], [[1, 2], [1, 1]], [[1, 1], [1, 2]], [[2, 2], [1, 1]])
    }
    assert len(digests) == 5


def test_codes_of_eight_bits_above_a_zero_point_of_zero_are_no_levels() -> None:
    """200 would be -56 in int8."""
    scheme, scale = AffineGroups(bits=8, group_size=2, symmetric=False), np.ones((1, 1), np.float16)
    high, low = (
        QuantizedTensor(scheme, np.array([codes], np.uint8), {"scale": scale, "zero": np.array([[zero]], np.uint8)})
        for codes, zero in (([0, 200], 0), ([56, 0], 56))
    )
    assert high.numbers_digest() != low.numbers_digest()


def test_ternary_weights_are_minus_scale_nothing_or_scale() -> None:
    tensor = round_to_nearest(weights(), AffineGroups(bits=2, group_size=32, ternary=True))
    scale = np.repeat(tensor.scale.astype(np.float32), 32, axis=1)
    assert set(np.unique(tensor.dequantized() / scale)) == {-1.0, 0.0, 1.0}
    with pytest.raises(UnsupportedSpec, match="ternary"):
        AffineGroups(bits=3, group_size=32, ternary=True)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "magic", "bits": 4, "group_size": 32}, "unknown scheme 'magic'"),
        ({"bits": "4", "group_size": 32}, "no setting 'bits' of type str"),
        ({"bits": True, "group_size": 32}, "no setting 'bits' of type bool"),
        ({"bits": 4, "group_size": 32, "colour": 1}, "no setting 'colour'"),
        ({"bits": 4}, "needs more settings"),
        ({"kind": "offset-groups", "bits": 9, "group_size": 32}, "bits must be from 2 to 8"),
        ({"kind": ["x"], "bits": 4, "group_size": 32}, "unknown scheme"),
    ],
)
def test_json_that_is_no_scheme_is_refused(data: dict[str, object], complaint: str) -> None:
    with pytest.raises(UnsupportedSpec, match=complaint):
        scheme_from_json(data)

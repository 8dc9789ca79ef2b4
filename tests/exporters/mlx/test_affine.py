"""A weight in MLX's three parts: literal bytes, every width and group with mlx's own arithmetic as judge, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import UnsupportedSpec, ValueOutOfRange
from quantkit.exporters.mlx import affine
from quantkit.exporters.mlx.settings import Stored
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.quantized_models import random_quantized

BF16 = np.dtype(ml_dtypes.bfloat16)
WIDTHS = (2, 3, 4, 5, 6, 8)
NAME = "model.layers.0.mlp.up_proj.weight"


def view_of(tensor: QuantizedTensor) -> QuantizedView:
    return QuantizedView(NAME, tensor.shape, tensor.scheme, lambda: tensor)


def stored_parts(tensor: QuantizedTensor, *, halves: bool = False) -> dict[str, np.ndarray]:
    """The three arrays, with the dtypes and shapes that were planned."""
    dtype = affine.parameter_dtype(tensor.scheme, halves=halves)
    shapes = affine.parts(tensor.shape, affine.stored(tensor.scheme), (dtype, dtype))
    packed = affine.packed(NAME, tensor, dtype)
    assert [(x.dtype, x.shape) for x in packed.buffers] == list(shapes.values())  # type: ignore[union-attr]
    return dict(zip(shapes, packed.buffers, strict=True))  # type: ignore[arg-type]


def read_back(parts: dict[str, np.ndarray], how: Stored, cols: int) -> QuantizedTensor:
    views = {
        name: TensorView(name, array.dtype, array.shape, lambda start, stop, array=array: array[start:stop].copy())
        for name, array in parts.items()
    }
    rows = len(parts[affine.SCALES])
    return affine.read_view(NAME, (rows, cols), how, views).read()


def test_the_smallest_weight_byte_by_byte() -> None:
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    scheme = AffineGroups(bits=4, group_size=32)
    tensor = QuantizedTensor(scheme, codes, {"scale": np.array([[0.5]], np.float16), "zero": np.array([[8]], np.uint8)})
    parts = stored_parts(tensor)
    assert parts["weight"].tobytes().hex() == "1032547698badcfe" * 2  # the first code in the lowest bits
    assert parts["scales"].tobytes().hex() == "0038"
    assert parts["biases"].tobytes().hex() == "00c4"  # -4


def test_codes_of_three_bits_go_over_the_ends_of_words() -> None:
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 10] = 7  # bits 30, 31 of the first word and 0 of the second
    tensor = QuantizedTensor(
        AffineGroups(bits=3, group_size=32),
        codes,
        {"scale": np.ones((1, 1), np.float16), "zero": np.full((1, 1), 4, np.uint8)},
    )
    assert stored_parts(tensor)["weight"].tolist() == [[3 << 30, 1, 0]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", WIDTHS)
def test_mlx_computes_the_very_values_and_the_codes_come_back(bits: int, group: int, symmetric: bool) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    tensor = random_quantized((6, 256), AffineGroups(bits=bits, group_size=group, symmetric=symmetric), bits)
    parts = stored_parts(tensor)
    assert parts["biases"].dtype == (np.float16 if symmetric else np.float32)
    arrays = (mx.array(array) for array in parts.values())
    words, scales, biases = (x if x.dtype == mx.uint32 else x.astype(mx.float32) for x in arrays)
    found = np.array(mx.dequantize(words, scales, biases, group_size=group, bits=bits))
    # scale * code and the bias are exact, and so is their sum: a multiple of the scale below 2^24 of it
    assert np.array_equal(found, tensor.dequantized())
    back = read_back(parts, Stored(bits, group), 256)
    assert back.scheme == tensor.scheme
    assert np.array_equal(back.codes, tensor.codes)
    assert np.array_equal(back.scale, tensor.scale)
    assert np.array_equal(back.zero[tensor.scale != 0], tensor.zero[tensor.scale != 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scales_of_every_dtype_come_back(dtype: str) -> None:
    for symmetric in (True, False):
        tensor = random_quantized(
            (6, 128), AffineGroups(bits=4, group_size=32, symmetric=symmetric, scale_dtype=dtype), 1
        )
        back = read_back(stored_parts(tensor), Stored(4, 32), 128)
        assert np.array_equal(back.scale.astype(np.float32), tensor.scale.astype(np.float32))
        assert np.array_equal(back.dequantized(), tensor.dequantized())
        assert back.scheme == tensor.scheme or (not symmetric and dtype == "bfloat16")  # float16 may hold them too


def test_offsets_that_are_no_zero_points_stay_offsets() -> None:
    rng = np.random.default_rng(0)
    scheme = OffsetGroups(bits=4, group_size=32)
    arrays = {name: rng.normal(size=(4, 2)).astype(np.float16) for name in ("scale", "offset")}
    tensor = QuantizedTensor(scheme, rng.integers(0, 16, (4, 64)).astype(np.uint8), arrays)
    back = read_back(stored_parts(tensor), Stored(4, 32), 64)
    assert back.scheme == scheme
    assert np.array_equal(back.dequantized(), tensor.dequantized())


def test_one_bias_that_is_off_makes_all_of_them_offsets() -> None:
    """What is read is what MLX computes with, not what was meant."""
    tensor = random_quantized((6, 128), AffineGroups(bits=4, group_size=32), 1)
    parts = stored_parts(tensor)
    parts["biases"][5, 3] = np.nextafter(parts["biases"][5, 3], np.float16(9))
    back = read_back(parts, Stored(4, 32), 128)
    assert isinstance(back.scheme, OffsetGroups)
    assert np.array_equal(back.arrays["offset"], parts["biases"])


def test_half_precision_rounds_biases_and_says_by_how_much() -> None:
    tensor = random_quantized((64, 128), AffineGroups(bits=8, group_size=32, symmetric=False), 1)
    packed = affine.packed(NAME, tensor, affine.FLOAT16)
    assert 0 < packed.moved < 0.13  # half a unit in the last place of up to 255 scales
    with pytest.raises(UnsupportedSpec, match="cannot hold"):
        fine = random_quantized((4, 64), AffineGroups(bits=4, group_size=32, scale_dtype="float32"), 1)
        affine.packed(NAME, fine, affine.FLOAT16)


def test_a_bias_beyond_its_dtype_is_refused() -> None:
    tensor = random_quantized((2, 64), AffineGroups(bits=8, group_size=32), 0)
    large = QuantizedTensor(
        tensor.scheme, tensor.codes, {"scale": np.full((2, 2), 60000, np.float16), "zero": tensor.zero}
    )
    with pytest.raises(ValueOutOfRange, match=NAME):
        affine.packed(NAME, large, affine.FLOAT16)


@pytest.mark.parametrize(
    ("scheme", "cols", "wanted"),
    [
        (AffineGroups(bits=4, group_size=-1), 256, AffineGroups(bits=4, group_size=128)),
        (
            AffineGroups(bits=4, group_size=-1, symmetric=False),
            96,
            AffineGroups(bits=4, group_size=32, symmetric=False),
        ),
        (AffineGroups(bits=4, group_size=192), 384, AffineGroups(bits=4, group_size=64)),
        (AffineGroups(bits=7, group_size=64), 128, AffineGroups(bits=8, group_size=64)),
        (
            AffineGroups(bits=7, group_size=64, symmetric=False),
            128,
            AffineGroups(bits=8, group_size=64, symmetric=False),
        ),
        (OffsetGroups(bits=7, group_size=256), 256, OffsetGroups(bits=8, group_size=128)),
    ],
    ids=str,
)
def test_what_mlx_has_not_is_stored_in_what_it_has_and_no_number_changes(
    scheme: AffineGroups | OffsetGroups, cols: int, wanted: Scheme
) -> None:
    if isinstance(scheme, AffineGroups):
        tensor = random_quantized((5, cols), scheme, 3)
    else:
        arrays = {name: np.full((5, 1), value, np.float16) for name, value in (("scale", 0.1), ("offset", -3.3))}
        tensor = QuantizedTensor(scheme, np.arange(5 * cols, dtype=np.uint8).reshape(5, cols) % 128, arrays)
    found = affine.fitting(view_of(tensor))
    assert found.scheme == wanted
    assert found.read().scheme == wanted
    assert np.array_equal(found.read().dequantized(), tensor.dequantized())


def test_what_fits_is_left_alone_and_what_does_not_is_refused() -> None:
    whole = view_of(random_quantized((5, 128), AffineGroups(bits=4, group_size=64), 3))
    assert affine.fitting(whole) is whole
    with pytest.raises(UnsupportedSpec, match=f"{NAME}: mlx has groups of 32, 64 and 128"):
        affine.fitting(view_of(random_quantized((5, 128), AffineGroups(bits=4, group_size=16), 3)))

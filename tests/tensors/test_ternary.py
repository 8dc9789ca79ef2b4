"""Weights that are ternary as they lie: found with the widest groups that hold, or not called ternary."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.ternary import off_grid_share, ternary_scheme, ternary_weights
from quantkit.tensors.views import TensorView

COLS = 768
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def view(values: np.ndarray, name: str = "w") -> TensorView:
    return TensorView(name, values.dtype, values.shape, lambda start, stop: values[start:stop])


def fake_quantized(
    *, rows: int = 24, width: int = COLS, dtype: np.dtype = BFLOAT16, largest: float = 0.05
) -> np.ndarray:
    """Random codes times scales that differ from group to group, as training with fake quantization leaves them."""
    random = np.random.default_rng(width)
    scales = (largest * random.uniform(0.2, 1, (rows, COLS // width, 1))).astype(dtype).astype(np.float32)
    codes = random.integers(-1, 2, (rows, COLS // width, width)).astype(np.float32)
    codes[codes == 0] *= -1  # zeros of both signs
    return (codes * scales).reshape(rows, COLS).astype(dtype)


def restored(values: np.ndarray) -> np.ndarray:
    """What a run would store of the values, dequantized."""
    scheme = ternary_scheme(view(values))
    assert scheme is not None
    return round_to_nearest(values.astype(np.float32), scheme).dequantized()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16), np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("width", [32, 48, 64, 96, 128, 256, 384, COLS])
def test_groups_of_any_width_are_found_and_give_back_every_value(width: int, dtype: np.dtype) -> None:
    values = fake_quantized(width=width, dtype=dtype)
    scheme = ternary_scheme(view(values))
    assert scheme is not None
    assert scheme.ternary
    assert scheme.group_size == (PER_ROW if width == COLS else width)
    assert np.array_equal(restored(values), values.astype(np.float32))


def test_the_width_of_the_narrowest_row_counts_even_where_it_comes_last() -> None:
    values = np.concatenate([fake_quantized(rows=4_000), fake_quantized(rows=1, width=384), fake_quantized(width=96)])
    scheme = ternary_scheme(view(values))
    assert scheme is not None
    assert scheme.group_size == 96
    assert np.array_equal(restored(values), values.astype(np.float32))


def test_rows_and_groups_of_zeros_and_of_one_sign_are_ternary() -> None:
    values = fake_quantized(width=128)
    values[3] = 0
    values[4, :128] = 0
    values[5] = np.abs(values[5])
    values[6] = -np.abs(values[6])
    assert np.array_equal(restored(values), values.astype(np.float32))
    assert ternary_scheme(view(np.zeros((4, COLS), BFLOAT16))) is not None


def test_scales_that_float16_lacks_are_kept_in_float32() -> None:
    small = fake_quantized(largest=2.0**-16)  # float16 has fewer digits there
    scheme = ternary_scheme(view(small))
    assert scheme is not None
    assert scheme.scale_dtype == "float32"
    assert np.array_equal(restored(small), small.astype(np.float32))
    usual = ternary_scheme(view(fake_quantized()))
    assert usual is not None
    assert usual.scale_dtype == "float16"


@pytest.mark.parametrize("row", [0, 23])
def test_one_value_off_by_one_ulp_is_noticed_and_counted(row: int) -> None:
    values = fake_quantized()
    column = int(np.flatnonzero(values[row].astype(np.float32))[7])
    values.view(np.uint16)[row, column] ^= 1
    assert ternary_scheme(view(values)) is None
    assert off_grid_share(view(values), PER_ROW) == pytest.approx(1 / values.size)


def test_ordinary_weights_and_damaged_ones_are_not_ternary() -> None:
    random = np.random.default_rng(0).standard_normal((24, COLS)).astype(np.float32)
    assert ternary_scheme(view(random)) is None
    assert off_grid_share(view(random), PER_ROW) > 0.99
    for bad in (np.nan, np.inf, 1e-45):
        assert ternary_scheme(view(np.full((4, COLS), bad, np.float32))) is None


def test_a_model_is_told_of_as_a_whole() -> None:
    odd = fake_quantized()
    odd[0, 0] = 0.3
    views = [view(fake_quantized(), "a"), view(fake_quantized(width=64), "b"), view(odd, "c")]
    told: list[float] = []
    found = ternary_weights(views, threads=2, progress=lambda _, done, total: told.append(done / total))
    assert set(found.found) == {"a", "b"}
    assert set(found.off_grid) == {"c"}
    assert found.notes[0].startswith("2 of 3 linear weights are ternary as they are, a scale for a row, 64 columns;")
    assert found.notes[1] == "c is not ternary: 0.00543 % of its values are off the grid; it stays dense"
    assert told == pytest.approx([1 / 3, 2 / 3, 1])
    assert ternary_weights([views[2]]).notes == ()

"""The reference quantizers against ggml's own in C, byte for byte; `benchmarks/gguf_reference.py` does more of it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.arithmetic import first_extremes, nearest_int, ordered_sum
from quantkit.exporters.gguf.reference.quantizer import PIECE, reference_blocks
from quantkit.exporters.gguf.types.codebooks import MXFP4
from quantkit.exporters.gguf.types.values import LAYOUTS, dequantized
from tests.support import ggml
from tests.support.gguf_rows import importances, rows_of_every_kind

TYPES = [*blocks.QUANTIZED.values(), *LAYOUTS]
ROWS, COLS = 6, 512
by_type = pytest.mark.parametrize("block", TYPES, ids=lambda block: block.name)


@pytest.mark.engine("llama-cpp")
@pytest.mark.parametrize("importance", importances(COLS))
@by_type
def test_the_bytes_are_those_of_ggml(block: BlockType, importance: str) -> None:
    weights = importances(COLS)[importance]
    for kind, values in rows_of_every_kind(ROWS, COLS).items():
        ours = reference_blocks("w", block, values, weights)
        assert np.array_equal(ours, ggml.quantized(block, values, weights)), kind


@pytest.mark.engine("llama-cpp")
@by_type
def test_a_single_block_and_the_ends_of_pieces_make_no_difference(block: BlockType) -> None:
    """numpy adds the terms of one column in another order than those of many."""
    cols = max(256, block.elements)
    rows = PIECE // cols + 5
    values = (np.random.default_rng(3).standard_normal((rows, cols)) * 0.02).astype(np.float32)
    weights = importances(cols)["skewed"]
    for given in (None, weights):
        whole = reference_blocks("w", block, values, given)
        assert np.array_equal(whole[-7:], ggml.quantized(block, values[-7:], given))
        assert np.array_equal(whole[:1], reference_blocks("w", block, values[:1], given))
    single = values[:1, : block.elements]
    assert np.array_equal(reference_blocks("w", block, single), ggml.quantized(block, single))


@by_type
def test_other_float_dtypes_are_the_float32_values_that_they_stand_for(block: BlockType) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = (np.random.default_rng(3).standard_normal((3, 512)) * 0.02).astype(dtype)
        wide = values.astype(np.float32)
        assert np.array_equal(reference_blocks("w", block, values), reference_blocks("w", block, wide))


@by_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(block: BlockType, bad: float) -> None:
    values = np.ones((2, 512), np.float32)
    values[1, 40] = bad
    with pytest.raises(NonFiniteValues, match=r"blk\.0\.x"):
        reference_blocks("blk.0.x", block, values, np.ones(512, np.float32))


@pytest.mark.parametrize("block", [block for block in TYPES if block is not MXFP4], ids=lambda block: block.name)
def test_a_scale_beyond_float16_is_refused_by_name(block: BlockType) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 0] = 3e9
    with pytest.raises(ValueOutOfRange, match="'w'"):
        reference_blocks("w", block, values)


@pytest.mark.parametrize("block", list(LAYOUTS), ids=lambda block: block.name)
def test_more_bits_lose_less(block: BlockType) -> None:
    """Relative squared error on normal weights: what the type's own number of bits can do, from both sides."""
    values = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    off = dequantized("w", block, reference_blocks("w", block, values)) - values
    error = float(np.square(off).mean() / np.square(values).mean())
    bits = 8 * block.nbytes / block.elements
    assert 4.0 ** -(bits + 0.6) < error < 4.0 ** -(bits - 1.5), (block.name, error)


def test_nearest_int_is_that_of_the_bits() -> None:
    values = np.array([0.5, 1.5, -0.5, 2.5, 4194303, 4194306, np.inf, -np.inf, np.nan], np.float32)
    assert nearest_int(values).tolist() == [0, 2, 0, 2, 4194303, -4194303, -4194304, -4194304, 0]


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 1000])
def test_sums_go_through_their_terms_in_order(columns: int) -> None:
    rng = np.random.default_rng(0)
    terms = (rng.standard_normal((256, columns)) * 10.0 ** rng.uniform(-3, 3, (256, columns))).astype(np.float32)
    total = np.zeros(columns, np.float32)
    for row in terms:
        total += row
    assert np.array_equal(ordered_sum(terms), total)


def test_of_equal_extremes_the_first_counts() -> None:
    low, high = first_extremes(np.array([[-0.0, 0.0], [0.0, -0.0]], np.float32))
    assert np.signbit(low).tolist() == np.signbit(high).tolist() == [True, False]

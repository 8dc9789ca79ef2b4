"""Searched blocks: nearer to the weights than ggml's at the same bytes, whatever the rows; and what refuses."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.errors import NonFiniteValues, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.quantizer import reference_blocks
from quantkit.exporters.gguf.searched.grids import GRIDS
from quantkit.exporters.gguf.searched.guides import Guide, guide
from quantkit.exporters.gguf.searched.quantizer import searched_blocks
from quantkit.exporters.gguf.types.codebooks import MXFP4
from quantkit.exporters.gguf.types.values import LAYOUTS, dequantized
from tests.support import ggml
from tests.support.gguf_rows import rows_of_every_kind

ROWS, COLS = 6, 512
by_type = pytest.mark.parametrize("block", GRIDS, ids=lambda block: block.name)


def values_of(block: BlockType, raw: np.ndarray) -> np.ndarray:
    return dequantized("w", block, raw) if block in LAYOUTS else blocks.dequantize(block, raw)


def correlated(cols: int) -> np.ndarray:
    """Second moments of inputs that lie near a few directions."""
    directions = np.random.default_rng(1).standard_normal((cols, 24)).astype(np.float32)
    return directions @ directions.T + 4 * np.eye(cols, dtype=np.float32)


@by_type
@pytest.mark.parametrize("kind", rows_of_every_kind(1, 16))
def test_errors_are_no_larger_than_ggmls(block: BlockType, kind: str) -> None:
    values = rows_of_every_kind(ROWS, COLS)[kind]
    weights = values.astype(np.float64)
    mean = np.square(weights).reshape(-1, block.elements).mean(axis=1)
    by = np.sqrt(np.square(weights) + np.repeat(mean, block.elements).reshape(weights.shape))
    ours, theirs = (
        float((by * np.square(values_of(block, raw) - weights)).sum())
        for raw in (searched_blocks("w", block, values, guide(None, COLS)), reference_blocks("w", block, values))
    )
    assert ours <= theirs * 1.02 + 1e-7 * float((by * np.square(weights)).sum())  # what float16 rounds away


@by_type
def test_on_normal_weights_the_search_gains_in_every_type(block: BlockType) -> None:
    values = np.random.default_rng(0).standard_normal((64, COLS)).astype(np.float32)
    off = [
        np.square(values_of(block, raw) - values).mean()
        for raw in (searched_blocks("w", block, values, guide(None, COLS)), reference_blocks("w", block, values))
    ]
    assert off[0] < 0.98 * off[1]


@by_type
def test_columns_behind_make_up_for_what_one_loses(block: BlockType) -> None:
    """By the error of outputs; a window that is not the whole row still helps."""
    values = (np.random.default_rng(0).standard_normal((32, COLS)) * 0.02).astype(np.float32)
    moments = correlated(COLS)

    def error(found: Guide) -> float:
        off = values_of(block, searched_blocks("w", block, values, found)) - values
        return float(np.einsum("ij,jk,ik->", off, moments, off))

    whole = guide([moments], COLS)
    halves = guide([moments[:256, :256], moments[256:, 256:]], COLS)
    alone = error(Guide(whole.energy))
    assert error(whole) < 0.85 * alone
    assert error(whole) < error(halves) < 0.95 * alone


@by_type
def test_without_moments_between_columns_every_weight_gets_its_nearest_level(block: BlockType) -> None:
    values = rows_of_every_kind(ROWS, COLS)["heavy-tailed"]
    energy = (np.random.default_rng(0).random(COLS) + 0.1).astype(np.float32)
    moments = [np.diag(energy[:300]), np.diag(energy[300:])]
    found = guide(moments, COLS)
    assert found.factors is not None
    alone = searched_blocks("w", block, values, Guide(found.energy))
    assert np.array_equal(searched_blocks("w", block, values, found), alone)


@pytest.mark.engine("llama-cpp")
@by_type
def test_ggml_reads_the_values_that_were_meant(block: BlockType) -> None:
    values = rows_of_every_kind(ROWS, COLS)["of many magnitudes"]
    raw = searched_blocks("w", block, values, guide(None, COLS))
    read = ggml.dequantized(block, raw.reshape(1, -1)).reshape(ROWS, COLS)
    assert np.array_equal(read, values_of(block, raw))
    assert np.square(read - values).sum() < 0.3 * np.square(values).sum()


@by_type
def test_zeros_stay_zeros_and_pieces_make_no_difference(block: BlockType) -> None:
    values = (np.random.default_rng(3).standard_normal((300, COLS)) * 0.02).astype(np.float32)
    values[7] = 0
    found = guide([correlated(COLS)], COLS)
    raw = searched_blocks("w", block, values, found)
    assert not values_of(block, raw[7:8]).any()
    assert np.array_equal(raw[-3:], searched_blocks("w", block, values[-3:], found))


@by_type
def test_what_no_block_holds_is_refused_by_name(block: BlockType) -> None:
    values = np.ones((2, COLS), np.float32)
    values[1, 40] = np.nan
    with pytest.raises(NonFiniteValues, match=r"blk\.0\.x"):
        searched_blocks("blk.0.x", block, values, guide(None, COLS))
    values[1, 40] = 3e9
    if block is not MXFP4:
        with pytest.raises(ValueOutOfRange, match=r"blk\.0\.x"):
            searched_blocks("blk.0.x", block, values, guide(None, COLS))


def test_moments_that_are_no_numbers_leave_all_columns_alike() -> None:
    for bad in (np.full((4, 4), np.inf, np.float32), np.zeros((4, 4), np.float32)):
        found = guide([bad], 4)
        assert found.factors is None
        assert (found.energy == 1).all()

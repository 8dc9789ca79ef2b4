"""Keys in 16 bits: the blocks that are chosen are those of float32, or lie so near that either may be.

Of 512 tokens and two groups at the end of 4,096, bfloat16 chose another set of blocks for 2 in 100, float16 for one in
1,000 or none; at 32K with the published `sparse_config` it is 12 and 2 in 100, each of them by one or two blocks of 96.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.selection import Selection
from quantkit.runtimes.reference.sparse.variants import DEFAULT

GROUPS, HEADS, CHANNELS, TOKENS, LAST = 2, 16, 128, 4096, 512
SPARSE = SparseSpec(topk=8, window_size=256, dense_len=-1)
SAME_SET = {np.dtype(ml_dtypes.bfloat16): 0.97, np.dtype(np.float16): 0.995}
SAME_BLOCKS = 0.99


def stage_one(q: np.ndarray, k: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """What each token and group chooses, and the scores of all blocks, (G, T, B) both."""
    attention = SparseAttention(SPARSE, DEFAULT, GROUPS, CHANNELS, dtype=dtype)
    attention.memory.extend(k, k)
    attention.memory.compress(k)
    selection, positions = Selection(SPARSE, DEFAULT, attention.memory, TOKENS), np.arange(TOKENS - LAST, TOKENS)
    by_group = q.reshape(GROUPS, HEADS, LAST, CHANNELS).swapaxes(1, 2)
    scores = [selection.scores(group, by_group[group], positions) for group in range(GROUPS)]
    return np.stack([selection.chosen(of_group) for of_group in scores]), np.stack(scores)


@pytest.mark.parametrize("dtype", SAME_SET, ids=str)
def test_other_blocks_are_chosen_seldom_and_where_scores_are_nearly_equal(dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((GROUPS * HEADS, LAST, CHANNELS), np.float32)
    k = rng.standard_normal((GROUPS, TOKENS, CHANNELS), np.float32)
    whole, scores = stage_one(q, k, np.dtype(np.float32))
    half, _ = stage_one(q, k, dtype)
    assert (whole & half).sum() >= SAME_BLOCKS * whole.sum()
    assert SAME_SET[dtype] <= (whole == half).all(axis=-1).mean()
    for group, token in np.argwhere((whole != half).any(axis=-1)):
        of_each = scores[group, token]
        lost, won = whole[group, token] & ~half[group, token], half[group, token] & ~whole[group, token]
        assert of_each[lost].max() <= of_each[won].min() * (1 + float(ml_dtypes.finfo(dtype).eps))

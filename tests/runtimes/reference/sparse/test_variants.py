"""The variants and `use_nope` on cases small enough to be worked out by hand.

Blocks of 2 tokens, means of 2 keys 1 apart, so mean i is (k_i + k_{i+1}) / 2; the last of 10 tokens asks (block 4).
Keys of one channel are chosen so that means and order of blocks are read off; values are the number of their token, and
the query is 0 in stage two where all that is seen counts the same: the output is the mean of the tokens' numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import variant_named

KEYS = [0.0, 0.0, 9.0, 9.0, 0.0, 0.0, 5.0, 5.0, 0.0, 0.0]
"""Block 1 answers best, then block 2, which shares the mean of tokens 3 and 4 with it, as block 3 that of 5 and 6."""


def seen_by_last(config: dict[str, int], variant: str, keys: list[float]) -> float:
    """The mean number of the tokens that the last of ten sees, which is decoded.

    Blocks are chosen by what is not rotated, where the query is 1; the query that attends is 0.
    """
    sparse = SparseSpec(
        **{"kernel_size": 2, "kernel_stride": 1, "block_size": 2, "dense_len": -1, **config}, use_nope=True
    )
    attention = SparseAttention(sparse, variant_named(variant), 1, 1)
    tokens = len(keys)
    rotated = np.zeros((1, tokens, 1), np.float32)
    asking = np.ones((1, tokens, 1), np.float32)
    plain = np.array(keys, np.float32)[None, :, None]
    values = np.arange(tokens, dtype=np.float32)[None, :, None]
    for part in (slice(0, tokens - 1), slice(tokens - 1, tokens)):
        out = attention.attend(
            rotated[:, part], rotated[:, part], values[:, part], unrotated=(asking[:, part], plain[:, part])
        )
    return float(out[-1, 0])


@pytest.mark.parametrize(
    ("variant", "config", "tokens"),
    [
        # 1 + 1 blocks: the window's own and the one before it (blocks 3 and 4) are all that fits.
        ("minicpm4.1", {"init_blocks": 0, "window_size": 2, "topk": 1}, [6, 7, 8, 9]),
        ("minicpm4.1", {"init_blocks": 0, "window_size": 2, "topk": 2}, [2, 3, 6, 7, 8, 9]),
        ("minicpm4.1", {"init_blocks": 1, "window_size": 2, "topk": 2}, [0, 1, 6, 7, 8, 9]),
        ("minicpm4.1", {"init_blocks": 1, "window_size": 0, "topk": 3}, [0, 1, 2, 3, 8, 9]),
        # The window is block 4 alone, and beside it `topk` blocks are chosen.
        ("minicpm4", {"init_blocks": 0, "window_size": 2, "topk": 1}, [2, 3, 8, 9]),
        ("minicpm4", {"init_blocks": 1, "window_size": 2, "topk": 2}, [0, 1, 2, 3, 8, 9]),
        # The window is counted in halves of blocks: one is token 8 and the asking one, two begin at token 7. Blocks
        # are left out of the choice by whole ones all the same, so that token 6 is never seen.
        ("cpm.cu", {"init_blocks": 0, "window_size": 2, "topk": 1}, [2, 3, 8, 9]),
        ("cpm.cu", {"init_blocks": 0, "window_size": 4, "topk": 1}, [2, 3, 7, 8, 9]),
    ],
)
def test_what_the_last_token_sees(variant: str, config: dict[str, int], tokens: list[int]) -> None:
    assert seen_by_last(config, variant, KEYS) == pytest.approx(np.mean(tokens), abs=1e-6)


def test_blocks_are_chosen_by_what_is_not_rotated() -> None:
    """The same keys after "rotation" are all alike, by which the first blocks would be chosen."""
    config = {"init_blocks": 0, "window_size": 2, "topk": 2}
    assert seen_by_last(config, "minicpm4.1", KEYS) == pytest.approx(np.mean([2, 3, 6, 7, 8, 9]))
    assert seen_by_last(config, "minicpm4.1", [0.0] * 10) == pytest.approx(np.mean([0, 1, 6, 7, 8, 9]))


def test_shared_means_make_neighbours_equal_and_the_first_is_taken() -> None:
    """Only the mean of tokens 3 and 4 answers: it counts for block 1, where it begins, and for block 2."""
    config = {"init_blocks": 0, "window_size": 2, "topk": 2}
    keys = [0.0] * 10
    keys[3] = keys[4] = 4.0
    assert seen_by_last(config, "minicpm4.1", keys) == pytest.approx(np.mean([2, 3, 6, 7, 8, 9]))


def test_scores_are_summed_over_heads_by_their_own_normaliser() -> None:
    """Two heads: S of a mean is e^(q1 k) / Z1 + e^(q2 k) / Z2, Z over coarse means, here one, of all eight keys."""
    config = SparseSpec(
        kernel_size=2, kernel_stride=2, block_size=2, init_blocks=0, window_size=0, topk=2, dense_len=-1
    )
    attention = SparseAttention(config, variant_named("minicpm4.1"), 1, 1)
    # Means 0, 1, 2, 3 of 4 blocks; the query's own is the last. Coarse mean: 0.5.
    k = np.array([0, 0, 1, 1, -1, -1, 2, 2], np.float32)[None, :, None]
    told: list[np.ndarray] = []
    attention = SparseAttention(
        config, variant_named("minicpm4.1"), 1, 1, observer=lambda group, first, chosen: told.append(chosen)
    )
    q = np.array([1.0, -3.0], np.float32)[:, None, None]
    attention.attend(np.zeros((2, 7, 1), np.float32), k[:, :7], k[:, :7])
    attention.attend(q, k[:, 7:], k[:, 7:])
    # S(0) = e^(-.5) + e^(1.5) = 5.09, S(1) = e^.5 + e^(-1.5) = 1.87, S(-1) = e^(-1.5) + e^(4.5) = 90.2.
    # A block also counts the mean before its own: block 1 has max(S(0), S(1)), block 2 max(S(1), S(-1)).
    assert told[-1].tolist() == [[False, False, True, True]]

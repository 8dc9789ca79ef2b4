"""Keys and values in 16 bits: the same blocks are chosen, because means are made of keys as they come, and kept."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import VARIANTS

GROUPS, HEADS, CHANNELS, TOKENS = 2, 4, 32, 1500
SPARSE = SparseSpec(topk=4, window_size=128, dense_len=-1)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_the_same_blocks_are_chosen_and_attended_within_rounding(dtype, variant) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((GROUPS * HEADS, TOKENS, CHANNELS), np.float32)
    k, v = (rng.standard_normal((GROUPS, TOKENS, CHANNELS), np.float32) for _ in range(2))
    outputs, choices, kept = [], [], []
    for precision in (np.float32, dtype):
        seen: list[np.ndarray] = []

        def told(*of: object, seen: list[np.ndarray] = seen) -> None:
            seen.append(np.array(of[-1]))

        attention = SparseAttention(SPARSE, variant, GROUPS, CHANNELS, dtype=precision, observer=told)
        parts = [slice(0, 900), *(slice(start, start + 1) for start in range(900, 960)), slice(960, TOKENS)]
        outputs.append(np.concatenate([attention.attend(q[:, at], k[:, at], v[:, at]) for at in parts]))
        choices.append(seen)
        kept.append(attention.memory.keys.nbytes)
    assert kept[0] == 2 * kept[1]
    assert len(choices[0]) == len(choices[1]) > 0
    assert all(np.array_equal(one, two) for one, two in zip(*choices, strict=True))
    difference = np.abs(outputs[0] - outputs[1]).max()
    assert 0 < difference < 16 * float(ml_dtypes.finfo(dtype).eps)

"""The needle probe: whole attention passes, for every variant, and each way to break it is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quantkit.errors import BadOption
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse import selection
from quantkit.runtimes.reference.sparse.variants import DEFAULT, VARIANTS
from quantkit.verification.sparse.needle import (
    NEEDLE,
    answers,
    context_ids,
    least_context,
    needle_model,
    probed,
    probes,
    why_not,
)
from quantkit.verification.sparse.oracle import sparse_oracle
from tests.support.memory import memory_checkpoint, tiny_config

SMALL = SparseSpec(
    kernel_size=8, kernel_stride=4, init_blocks=1, block_size=8, window_size=32, topk=6, dense_len=60
)  # fmt: skip
HEADS = replace(memory_checkpoint(tiny_config()).spec, sparse=SMALL)
CONTEXT = 400


def problems(context: int = CONTEXT, **given: Any) -> str:
    return "\n".join(probed(sparse_oracle(), HEADS, context, **given).problems)


@pytest.mark.parametrize("variant", [variant.name for variant in VARIANTS])
@pytest.mark.parametrize("changes", [{}, {"use_nope": True}, {"kernel_size": 5, "kernel_stride": 2}, {"dense_len": -1}])
def test_every_variant_finds_what_it_must(variant: str, changes: dict[str, Any]) -> None:
    spec = replace(HEADS, sparse=replace(SMALL, **changes))
    for seed in range(3):
        assert probed(sparse_oracle(variant), spec, CONTEXT, seed=seed).problems == ()
    assert probed(sparse_oracle(variant), spec, least_context(spec.sparse)).problems == ()


def test_the_published_numbers_and_head_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.verification.sparse.needle.NEEDLES", 1)
    spec = replace(HEADS, num_attention_heads=32, head_dim=128, sparse=SparseSpec())
    assert probed(sparse_oracle(), spec, 9000).problems == ()


def test_depths_are_drawn_and_the_same_every_time() -> None:
    found = probed(sparse_oracle(), HEADS, CONTEXT)
    assert found == probed(sparse_oracle(), HEADS, CONTEXT)
    assert len(found.depths) == 4
    assert found.depths != probed(sparse_oracle(), HEADS, CONTEXT, seed=1).depths


def test_the_needle_is_where_it_is_said_to_be() -> None:
    for probe in probes(SMALL, CONTEXT, 5):
        ids = context_ids(SMALL, probe, CONTEXT, 5)
        assert len(ids) == CONTEXT
        assert [place for place, token in enumerate(ids) if token == NEEDLE] == [
            depth for depth in [probe.depth] if depth is not None
        ]


def test_dense_attention_is_seen() -> None:
    """It answers the needle that has no score, which is not in sight."""
    model = needle_model(HEADS, CONTEXT, 0)
    hidden = next(probe for probe in probes(SMALL, CONTEXT, 0) if probe.shrouded and not probe.answered)
    assert answers(ReferenceSession(model), context_ids(SMALL, hidden, CONTEXT, 0))
    with sparse_oracle().watched(model) as session:
        assert not answers(session, context_ids(SMALL, hidden, CONTEXT, 0))


def test_a_block_beside_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = selection.top

    def beside(scores: np.ndarray, count: int) -> np.ndarray:
        chosen = right(scores, count)
        by_score = chosen & np.isfinite(scores)
        return (chosen & ~by_score) | np.roll(by_score, 3, axis=-1)

    monkeypatch.setattr(selection, "top", beside)
    assert "is not among the blocks that key-value head 0 chose" in problems()


def test_blocks_that_are_not_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    right = selection.top
    monkeypatch.setattr(selection, "top", lambda scores, count: right(scores, count) & np.isfinite(scores))
    found = problems()
    assert "in a first block, at token" in found
    assert "in the window, at token" in found
    assert found.count("does not change the output") >= 2


@pytest.mark.parametrize(("count", "told"), [(6, "is not among the blocks"), (99, "changes the output, and must not")])
def test_another_number_of_blocks(count: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None but those that always are chosen, or all."""
    monkeypatch.setattr(type(DEFAULT), "chosen", lambda *_: count)
    assert told in problems()


def test_scores_of_the_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    right = selection.Selection._mean_scores
    monkeypatch.setattr(selection.Selection, "_mean_scores", lambda *given: 1 / right(*given))
    assert "is not among the blocks that key-value head 1 chose" in problems()


def test_too_short_a_context_is_refused() -> None:
    least = least_context(SMALL)
    with pytest.raises(BadOption, match="too short for the needle probe") as refusal:
        problems(least - 1)
    assert f"--context from {least} to" in str(refusal.value.hint)
    with pytest.raises(BadOption, match="too long for the needle probe"):
        problems(1 << 30)


def test_what_it_says_nothing_of() -> None:
    assert why_not(HEADS) is None
    assert "have none that RoPE leaves alone" in str(why_not(replace(HEADS, head_dim=2)))
    assert "topk 2" in str(why_not(replace(HEADS, sparse=replace(SMALL, topk=2))))

"""A whole model that attends sparsely: dense where it must be, told what it chose, and refused without its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantkit.errors import BadOption, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.reference.runtime import ReferenceRuntime
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse.session import SparseSession
from quantkit.runtimes.reference.sparse.variants import VARIANTS, variant_named
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

SPARSE = {
    "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 3,
    "dense_len": 40,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 97, 64).tolist()


def model(**changes: Any) -> Checkpoint:
    config = tiny_config(sparse_config={**SPARSE, **changes}, max_position_embeddings=128)
    return memory_checkpoint(config, random_arrays(memory_checkpoint(config).spec, seed=3))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_where_every_block_is_seen_it_is_the_dense_model(variant: Any) -> None:
    everything = model(topk=40, dense_len=-1, window_size=400)
    dense = ReferenceSession(everything).logits(IDS)
    np.testing.assert_allclose(SparseSession(everything, variant).logits(IDS), dense, atol=2e-5)
    session = SparseSession(everything, variant)
    for length in (50, 51, 52, 60):
        np.testing.assert_allclose(session.next_logits(IDS[:length]), dense[length - 1], atol=2e-5)


def test_a_prompt_is_dense_below_its_length_and_sparse_from_there_on() -> None:
    checkpoint = model()
    dense, sparse = ReferenceSession(checkpoint), SparseSession(checkpoint)
    assert np.abs(sparse.logits(IDS[:39]) - dense.logits(IDS[:39])).max() <= 1e-5
    assert np.abs(sparse.logits(IDS[:40]) - dense.logits(IDS[:40]))[-1].max() > 0.01


def test_decoding_goes_on_where_it_was_and_begins_anew_elsewhere() -> None:
    checkpoint = model(dense_len=-1)
    session = SparseSession(checkpoint)
    for length in (30, 31, 32):
        found = session.next_logits(IDS[:length])
    whole = SparseSession(checkpoint).logits(IDS[:32])[-1]
    np.testing.assert_allclose(found, whole, atol=2e-5)  # one prompt of 32 is decoded alike: every mean is seen
    other = [*IDS[:10], 5, *IDS[11:33]]
    np.testing.assert_allclose(session.next_logits(other), SparseSession(checkpoint).next_logits(other), atol=1e-6)


def test_many_prompts_are_each_their_own() -> None:
    session = SparseSession(model(dense_len=-1))
    prompts = [IDS[:50], IDS[7:30], IDS[:1]]
    for prompt, prediction in zip(prompts, session.predictions(prompts, int8_run=None), strict=True):
        np.testing.assert_allclose(prediction.exact, session.logits(prompt), atol=2e-5)


def test_choosing_before_rotation_is_another_model() -> None:
    one, other = (SparseSession(model(use_nope=nope, dense_len=-1)).logits(IDS) for nope in (False, True))
    assert np.abs(one - other).max() > 0.01


def test_every_choice_is_told() -> None:
    told: list[tuple[int, int, int, np.ndarray]] = []
    SparseSession(model(), observer=lambda *choice: told.append(choice)).logits(IDS)
    assert [(layer, group, first) for layer, group, first, _ in told] == [(n, g, 0) for n in range(3) for g in range(2)]
    for *_, blocks in told:
        assert blocks.shape == (64, 16)
        assert blocks.sum(axis=1).tolist() == [min(t // 4 + 1, 5) for t in range(64)]


def test_a_model_that_does_not_say_how_is_refused() -> None:
    checkpoint = memory_checkpoint(tiny_config())
    assert "no sparse_config" in str(ReferenceRuntime(attention="sparse").refuses(checkpoint))
    assert ReferenceRuntime(attention="sparse", variant="cpm.cu").refuses(model()) is None
    assert ReferenceRuntime().refuses(checkpoint) is None
    with pytest.raises(UnsupportedModel, match="no sparse_config"):
        SparseSession(checkpoint)
    with pytest.raises(BadOption, match="no variant 'flash'"):
        ReferenceRuntime(attention="sparse", variant="flash")
    with pytest.raises(BadOption, match="needs a window"):
        SparseSession(model(window_size=3), variant_named("minicpm4"))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_some_positions_are_those_of_all(variant: Any) -> None:
    session = SparseSession(model(dense_len=-1), variant)
    (whole,) = session.predictions([IDS], int8_run=32)
    (some,) = session.predictions([IDS], int8_run=32, positions=[3, 40, 63])
    np.testing.assert_allclose(some.exact, whole.exact[[3, 40, 63]], atol=2e-6)
    np.testing.assert_allclose(some.rounded, whole.rounded[[3, 40, 63]], atol=2e-6)  # type: ignore[index, arg-type]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_last_token_alone_is_the_last_of_all(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.runtimes.reference.sparse.variants.CpmCu.chunk", 24)
    for nope in (False, True):
        checkpoint = model(dense_len=-1, use_nope=nope)
        session = SparseSession(checkpoint, variant)
        np.testing.assert_allclose(session.next_logits(IDS[:60]), session.logits(IDS[:60])[-1], atol=2e-5)


def test_scores_are_told_before_choices() -> None:
    told: list[tuple[str, int, int, np.ndarray]] = []
    SparseSession(
        model(),
        observer=lambda layer, group, first, rows: told.append(("chosen", layer, group, rows)),
        scored=lambda layer, group, first, rows: told.append(("scored", layer, group, rows)),
    ).logits(IDS)
    assert [what for what, *_ in told] == ["scored", "chosen"] * 6
    for (_, layer, group, scores), (*other, chosen) in zip(told[::2], told[1::2], strict=True):
        assert other[1:] == [layer, group]
        assert chosen[np.isposinf(scores)].all()
        assert not chosen[np.isneginf(scores)].any()
        lowest = np.where(chosen, scores, np.inf).min(axis=1)
        assert (lowest >= np.where(chosen, -np.inf, scores).max(axis=1)).all()

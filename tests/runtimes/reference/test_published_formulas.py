"""Reference and torch model against a third transcription of the published formulas, which reads config.json itself.

The two of quantkit compute in float32, the third in float64: what they may differ by is float32's rounding, as the
second witness of `golden` allows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.verification.witness import distance, tolerance
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config
from tests.support.minicpm_formulas import minicpm_logits

TOKENS = 40
SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
LISTS = {"short_factor": [1 + 0.2 * i for i in range(4)], "long_factor": [2 + 1.5 * i for i in range(4)]}
LONGROPE = {"rope_type": "longrope", **LISTS, "original_max_position_embeddings": 16}
MODELS: dict[str, dict[str, Any]] = {
    "tied, as the 0.5B says nothing": {},
    "untied": {"tie_word_embeddings": False},
    "no scalars": {"scale_emb": None, "scale_depth": None, "dim_model_base": None},
    "other scalars": {"scale_emb": 5.5, "scale_depth": 2.0, "dim_model_base": 9, "rms_norm_eps": 1e-2},
    "every head its own keys": {"num_key_value_heads": None},
    "one key head": {"num_key_value_heads": 1},
    "wide heads, as in the 3B": {"head_dim": 16, "tie_word_embeddings": False},
    "longrope, native": {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 64}},
    "longrope, long beyond 16 of 64": {"rope_scaling": LONGROPE},
    "longrope, old name, ignored factors": {
        "rope_scaling": {"type": "su", **LISTS, "original_max_position_embeddings": 48, "factor": 9.0,
                         "attention_factor": 1.7},
    },
    "longrope, original beyond the context, as in the 3B": {
        "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 66},
    },
    "another base": {"rope_theta": 100.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic, within": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_theta": 1e6},
    "dynamic, beyond, as the 2B-128k": {
        "rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_theta": 1e6, "max_position_embeddings": 10,
        "tie_word_embeddings": False,
    },
    "sparse_config, computed dense": {"sparse_config": {"topk": 64, "dense_len": 8192, "window_size": 2048}},
}  # fmt: skip


def model(changes: dict[str, Any]) -> tuple[dict[str, Any], Checkpoint]:
    config = {**tiny_config(**{**SIZES, **changes})}
    return config, memory_checkpoint(config, random_arrays(memory_checkpoint(config).spec, seed=7))


def token_ids(length: int) -> list[int]:
    return np.random.default_rng(3).integers(0, SIZES["vocab_size"], length).tolist()


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS.keys())
def published(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Checkpoint, dict[int, np.ndarray]]:
    """A config, its model, and the published formulas' logits for prompts on both sides of every border."""
    config, checkpoint = model(request.param)
    arrays = {name: view.read() for name, view in checkpoint.weights.items()}
    return config, checkpoint, {n: minicpm_logits(config, arrays, token_ids(n)) for n in (1, 10, 16, 17, TOKENS)}


def test_the_reference_computes_what_is_published(published: Any) -> None:
    _, checkpoint, wanted = published
    session = ReferenceSession(checkpoint)
    for length, theirs in wanted.items():
        if length > checkpoint.spec.max_position_embeddings:
            with pytest.raises(BadOption, match="exceeds the model's context"):
                session.logits(token_ids(length))
            continue
        assert distance(session.logits(token_ids(length)), theirs) <= tolerance(3, length), length
        row = session.next_logits(token_ids(length))
        assert distance(row[None], theirs[-1:]) <= tolerance(3, length), length


def test_the_torch_model_computes_what_is_published(published: Any) -> None:
    _, checkpoint, wanted = published
    network = load_model(checkpoint)
    for length, theirs in wanted.items():
        with torch.no_grad():
            ours = network(torch.tensor([token_ids(length)]))[0].numpy()
        assert distance(ours, theirs) <= tolerance(3, length), length


FAULTS: dict[str, dict[str, Any]] = {
    "scale_emb": {"scale_emb": 11.9},
    "scale_depth": {"scale_depth": 1.41},
    "dim_model_base": {"dim_model_base": 16.2},
    "rms_norm_eps": {"rms_norm_eps": 1e-3},
    "rope_theta": {"rope_theta": 10100.0},
    "factors": {"rope_scaling": {**LONGROPE, "long_factor": LISTS["short_factor"]}},
    "original context": {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 15}},
    "longest context": {"max_position_embeddings": 65},
    "no LongRoPE": {"rope_scaling": None},
}


@pytest.mark.parametrize("changes", FAULTS.values(), ids=FAULTS.keys())
def test_a_value_that_is_misread_by_a_little_shows(changes: dict[str, Any]) -> None:
    config, checkpoint = model({"rope_scaling": LONGROPE})
    misread, _ = model({"rope_scaling": LONGROPE, **changes})
    arrays = {name: view.read() for name, view in checkpoint.weights.items()}
    theirs = minicpm_logits(misread, arrays, token_ids(TOKENS))
    ours = ReferenceSession(checkpoint).logits(token_ids(TOKENS))
    assert distance(ours, minicpm_logits(config, arrays, token_ids(TOKENS))) <= tolerance(3, TOKENS)
    assert distance(ours, theirs) > 3 * tolerance(3, TOKENS)

"""Which model an artifact must describe: the original, or what that folds into, whatever the family is called."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from quantkit.errors import GoldenMismatch
from quantkit.models.recognition import parse_config
from quantkit.verification.steps.identity import expected_spec, spec_differences, spec_from_json, spec_to_json
from tests.support.memory import tiny_config

MINICPM = parse_config(tiny_config())
LLAMA = MINICPM.folded()
UNFOLDABLE = parse_config(tiny_config(rms_norm_eps=0.1, scale_depth=0.75 * 3**0.5))


def test_an_artifact_of_another_family_is_held_to_the_folded_original() -> None:
    assert expected_spec(MINICPM, MINICPM) == MINICPM
    assert expected_spec(MINICPM, LLAMA) == LLAMA
    assert expected_spec(LLAMA, LLAMA) == LLAMA


def test_an_artifact_of_a_family_that_the_original_does_not_fold_into_differs() -> None:
    for original, artifact in ((LLAMA, MINICPM), (UNFOLDABLE, LLAMA)):
        problems = list(spec_differences(expected_spec(original, artifact), artifact))
        assert any(problem.startswith("architecture is ") for problem in problems)


def test_dynamic_ntk_that_was_lost_differs() -> None:
    scaling = {"type": "dynamic", "factor": 4.0}
    original = parse_config(tiny_config(rope_scaling=scaling))
    lost = replace(original, rope=replace(original.rope, kind="default", factor=1.0))
    assert [problem.split(" is ")[0] for problem in spec_differences(original, lost)] == ["rope.kind", "rope.factor"]


def test_sparse_attention_is_recorded_and_may_be_missing() -> None:
    """Containers without a place for it hold the same model."""
    plain = parse_config(tiny_config())
    sparse = parse_config(tiny_config(sparse_config={"topk": 8, "use_nope": True}))
    assert spec_from_json(json.loads(json.dumps(spec_to_json(sparse))), "golden").sparse == sparse.sparse
    assert spec_from_json(json.loads(json.dumps(spec_to_json(plain))), "golden").sparse is None
    assert list(spec_differences(sparse, plain)) == list(spec_differences(plain, sparse)) == []
    broken = {**spec_to_json(plain), "sparse": {"blocks": 3}}
    with pytest.raises(GoldenMismatch):
        spec_from_json(broken, "golden")

"""What `plan` says of onnxruntime and onnxruntime-genai, by the weights and the rotation of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.planning.verdicts import verdicts
from quantkit.protocols import Verdict
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

INT4 = AffineGroups(bits=4, group_size=32)


def said(scheme: AffineGroups, **changes: Any) -> dict[str, Verdict]:
    """The kernels' verdicts on a model that lies in the container as it is."""
    model: Checkpoint = replace(quantized_model(tiny_config(**changes), linears(scheme)), format="onnx")
    return {found.kernel: found for found in verdicts(model)}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_and_four_bits_are_taken_without_a_word(bits: int, symmetric: bool) -> None:
    found = said(AffineGroups(bits=bits, group_size=32, symmetric=symmetric))
    assert (found["onnxruntime"].refusal, found["onnxruntime"].remark) == (None, None)


def test_eight_bits_are_slow_and_three_are_refused_with_a_mend() -> None:
    assert "8 bits at every call" in str(said(replace(INT4, bits=8))["onnxruntime"].remark)
    narrow = said(replace(INT4, bits=3))["onnxruntime"]
    assert "q_proj.weight is int3 g32 sym; it takes 2, 4 and 8 bits" in str(narrow.refusal)
    assert narrow.mend == "export --bits 4"


def test_genai_is_given_ids_because_it_splits_texts_otherwise() -> None:
    found = said(INT4)["onnxruntime-genai"]
    assert found.refusal is None
    assert "runs of spaces" in str(found.remark)
    assert "adds no BOS" in str(found.remark)


def test_keys_of_two_lists_of_factors_stay_as_they_were_turned() -> None:
    lists = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 16}
    found = said(INT4, rope_scaling={"rope_type": "longrope", **lists})
    assert all("beyond 16 tokens" in str(verdict.remark) for verdict in found.values())
    lists["long_factor"] = lists["short_factor"]
    alike = said(INT4, rope_scaling={"rope_type": "longrope", **lists})
    assert alike["onnxruntime"].remark is None

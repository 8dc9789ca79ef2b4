"""The conformance matrix: its crafted artifacts, its verdicts, and the page that it wrote last."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conformance import choices, mirrored_tensor
from benchmarks.conformance_page import COMPUTED, DENSE, Artifact, Row, baselines, problem
from quantkit import registry
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.verification.report import Check, Comparison
from tests.support.quantized_models import random_quantized

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"


def row(
    *,
    engine: str = "vllm",
    weights: str = "int4 sym",
    difference: float = 0.0,
    lead: float = 0.0,
    same_next_token: bool = True,
) -> Row:
    check = Check(
        "engine against reference", "kl", 1.0, (Comparison("p", 1, 0.0, 1.0, difference, lead, same_next_token),)
    )
    artifact = Artifact(container="hf", options=ExportOptions(type="f16"), weights=weights)
    return Row(artifact=artifact, engine=engine, against_reference=check, against_golden=check)


def positive(spec: AffineGroups) -> QuantizedTensor:
    tensor = random_quantized((64, 256), spec, 0)
    codes = np.maximum(tensor.codes, 1) if spec.symmetric else tensor.codes
    return QuantizedTensor(spec, codes, {"scale": np.abs(tensor.scale), "zero": tensor.zero})


@pytest.mark.parametrize("symmetric", [True, False])
def test_mirrored_scales_are_negative_and_change_no_weight(symmetric):
    tensor = positive(AffineGroups(bits=4, group_size=32, symmetric=symmetric))
    mirrored = mirrored_tensor(tensor)
    assert (mirrored.scale < 0).mean() == 0.5
    np.testing.assert_array_equal(mirrored.dequantized(), tensor.dequantized())
    upside_down = QuantizedTensor(
        tensor.scheme, mirrored.codes, {"scale": np.abs(mirrored.scale), "zero": mirrored.zero}
    )
    assert not np.array_equal(upside_down.dequantized(), tensor.dequantized())


def test_a_group_with_code_zero_has_no_mirror_where_the_zero_point_is_fixed():
    tensor = positive(AffineGroups(bits=4, group_size=32))
    codes = tensor.codes.copy()
    codes[:32, ::32] = 0
    with_zeros = QuantizedTensor(tensor.scheme, codes, {"scale": tensor.scale, "zero": tensor.zero})
    assert (mirrored_tensor(with_zeros).scale[:32] >= 0).all()


@pytest.mark.parametrize(
    ("tested", "reason"),
    [
        ({"difference": 0.02}, ""),
        ({"difference": 0.021}, "more than 2 x"),
        ({"difference": math.nan}, "more than 2 x"),
        ({"lead": 0.01}, ""),
        ({"lead": 0.011}, "another"),
        ({"lead": math.nan}, "another"),
        ({"same_next_token": False}, "another"),
        ({"engine": "llama-cpp", "difference": 0.5}, ""),
        ({"weights": DENSE, "difference": 0.5}, ""),
    ],
)
def test_quantized_weights_in_vllm_are_held_to_what_dense_float16_shows_there(tested, reason):
    bases = baselines([row(weights=COMPUTED, difference=0.01)])
    assert (reason in problem(row(**tested), bases)) if reason else problem(row(**tested), bases) == ""


def test_without_a_baseline_nothing_passes():
    assert "more than" in problem(row(), {})


def test_every_container_type_and_engine_is_in_the_page_and_every_row_passes():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "arch" not in line]
    assert {cells[-1] for cells in rows} == {"ok"}
    shown = {(cells[0], cells[1]) for cells in rows}
    for name in registry.names("exporters"):
        for options in choices(registry.exporter(name), "int4 sym"):
            cell = Artifact(container=name, options=options, weights="int4 sym")
            assert (name, cell.type) in shown or f"- {name} {cell.type}: int4 sym\n" in text
    for name in registry.names("runtimes"):
        assert f"\n## {name}\n" in text

"""The ternary golden model: what a stranger's fake-quantized checkpoint is taken for, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from golden.tensor_digest import tensors_digest
from quantkit import ExportOptions, QuantizeOptions, export, inspection, open_checkpoint, quantize, verify
from quantkit.models.spec import LINEAR_ROLES
from quantkit.tensors.views import TensorView


@pytest.fixture(scope="module")
def ternary(golden_model: Path) -> Path:
    return golden_model.parent / "ternary"


def test_its_linear_weights_have_three_values_a_row_and_nothing_else_is_ternary(ternary: Path):
    checkpoint = open_checkpoint(ternary)
    found = inspection(checkpoint).ternary
    linear = {slot.name for slot in checkpoint.spec.slots() if slot.role in LINEAR_ROLES}
    assert set(found.found) == linear
    for name in linear:
        view = checkpoint.weights[name]
        assert isinstance(view, TensorView)
        assert all(len(np.unique(row)) <= 3 for row in view.read().astype(np.float32))


def test_its_tq2_0_export_has_the_expected_tensors(ternary: Path, tmp_path: Path):
    pytest.importorskip("gguf", reason="its tensors are read by the package gguf")
    expected = json.loads(ternary.with_suffix(".json").read_text())["tq2_0"]
    direct = export("gguf", ternary, tmp_path / "direct.gguf", ExportOptions(type="tq2_0")).path
    assert tensors_digest(direct) == expected
    run = quantize(ternary, tmp_path / "codes", QuantizeOptions(method="ternary")).path
    by_codes = export("gguf", run, tmp_path / "codes.gguf", ExportOptions(type="tq2_0")).path
    assert tensors_digest(by_codes) == expected


def test_llama_cpp_runs_it_as_the_checkpoint_predicts(ternary: Path, tmp_path: Path):
    pytest.importorskip("xllamacpp", reason="it is run in llama.cpp, which needs quantkit[llama-cpp]")
    made = export("gguf", ternary, tmp_path / "ternary.gguf", ExportOptions(type="tq2_0")).path
    report = verify(made, against=ternary)
    assert report.passed
    assert report.engine == "llama-cpp"

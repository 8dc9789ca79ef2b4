"""A small folder that the exporter wrote, for tests that spoil it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

pytest.importorskip("onnx")

CONFIG = tiny_config(num_hidden_layers=1, vocab_size=64)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int4 with zero points, in onnxruntime's operators; not to be changed."""
    folder = tmp_path_factory.mktemp("onnx") / "good"
    model = quantized_model(CONFIG, linears(AffineGroups(bits=4, group_size=32, symmetric=False)))
    publish(registry.exporter("onnx").prepare(model, ExportOptions()), folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of `good`, to be changed."""
    return Path(shutil.copytree(good, tmp_path / "model"))

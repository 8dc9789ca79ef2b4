"""Which containers hold latent attention, and what the others say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantkit
from quantkit import registry
from quantkit.errors import UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.latent_definition import TINY, latent_arrays, write_latent
from tests.support.memory import memory_checkpoint
from tests.support.runs import quantized

HOLD = ("hf", "compressed-tensors", "awq", "gguf")
REFUSE = tuple(name for name in registry.names("exporters") if name not in HOLD)
WIDE: dict[str, Any] = {**TINY, "num_hidden_layers": 1}


def int4(*, symmetric: bool = True) -> Checkpoint:
    model = memory_checkpoint(WIDE, latent_arrays(WIDE))
    return quantized(model, AffineGroups(bits=4, group_size=128, symmetric=symmetric), "rtn").checkpoint


@pytest.mark.parametrize("name", REFUSE)
@pytest.mark.parametrize("source", ["dense", "int4"])
def test_others_refuse_it_by_name_with_the_way_out(name: str, source: str) -> None:
    model = int4() if source == "int4" else memory_checkpoint(WIDE, latent_arrays(WIDE))
    with pytest.raises(UnsupportedSpec, match=rf"{name} is not written for latent attention \(MLA\)") as refusal:
        registry.exporter(name).prepare(model, ExportOptions())
    assert "gguf, compressed-tensors, awq or hf" in (refusal.value.hint or "")


@pytest.mark.parametrize("name", ["mlx", "onnx", "openvino"])
def test_plan_says_so_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    planned = quantkit.plan(write_latent(tmp_path / "m", WIDE), [name])
    assert "latent attention" in (planned.targets[0].refusal or "")


@pytest.mark.parametrize("name", ["compressed-tensors", "awq", "gguf"])
def test_codes_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    model = int4(symmetric=name != "awq")
    out = tmp_path / ("m.gguf" if name == "gguf" else "out")
    quantkit.export(name, model, out)
    back = registry.open_checkpoint(out)
    packed = [view for view in model.weights.values() if isinstance(view, QuantizedView)]
    assert len(packed) == 8
    for view in packed:
        np.testing.assert_array_equal(back.weights[view.name].read().dequantized(), view.read().dequantized())


def test_a_dense_folder_comes_back_and_out_of_gguf_again(tmp_path: Path) -> None:
    source = write_latent(tmp_path / "m", WIDE)
    quantkit.export("hf", source, tmp_path / "hf", ExportOptions(type="f32"))
    quantkit.export("gguf", source, tmp_path / "m.gguf", ExportOptions(type="f32"))
    quantkit.export("hf", tmp_path / "m.gguf", tmp_path / "again", ExportOptions(type="f32"))
    original = registry.open_checkpoint(source)
    for folder in (tmp_path / "hf", tmp_path / "again"):
        back = registry.open_checkpoint(folder)
        assert back.spec == original.spec, "the folder's engines add 1e-6 again"
        assert not list(folder.glob("*.py"))
        for name, view in original.weights.items():
            np.testing.assert_array_equal(back.weights[name].read(), view.read())
    for against in (source, tmp_path / "m.gguf"):
        assert quantkit.verify(tmp_path / "again", against=against, engine="none").passed

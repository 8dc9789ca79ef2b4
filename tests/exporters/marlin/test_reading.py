"""Reading Marlin folders: those of CPM.cu's own converter, those of other containers, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters.marlin.exporter import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.marlin_layout import grouped_permutation, reference_pack
from tests.support.marlin_models import CPM_CU, IST, QKV, check_equal, model, tensor_of, written


def stranger(folder: Path, given: Checkpoint, **settings: Any) -> Path:
    """A folder as CPM.cu's converter leaves it: one unusual file, beside the config of the GPTQ source."""
    folder.mkdir()
    quantization = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False,
                    "static_groups": True, "checkpoint_format": "gptq", "quant_method": "gptq", **settings}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**given.config, "quantization_config": quantization}))
    tensors = {}
    fused = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj"),
             "o_proj": ("o_proj",), "down_proj": ("down_proj",)}  # fmt: skip
    names = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj", "o_proj": "o_proj", "down_proj": "down_proj"}
    for name, weight in given.weights.items():
        if isinstance(weight, TensorView):
            tensors[name] = weight.read().astype(np.float16)
            continue
        parent, _, first = name.removesuffix(".weight").rpartition(".")
        if first in fused:
            layers = [tensor_of(given, f"{parent}.{part}.weight") for part in fused[first]]
            scales = np.concatenate([layer.scale for layer in layers]).T
            words = reference_pack(np.concatenate([layer.codes for layer in layers]))
            tensors[f"{parent}.{names[first]}.qweight"] = words.view(np.int32)
            order = grouped_permutation()
            tensors[f"{parent}.{names[first]}.scales"] = scales.reshape(-1, 64)[:, order].reshape(scales.shape)
    save_file(tensors, folder / "model_gptq.safetensors")
    return folder


def test_a_folder_of_cpm_cus_own_converter_is_read(tmp_path: Path) -> None:
    back = registry.open_checkpoint(stranger(tmp_path / "theirs", model()))
    assert back.format == "marlin"
    for name, weight in model().weights.items():
        if isinstance(weight, QuantizedView):
            assert np.array_equal(tensor_of(back, name).codes, weight.read().codes), name
            assert np.array_equal(tensor_of(back, name).scale, weight.read().scale), name


@pytest.mark.parametrize("source", ["gptq", "compressed-tensors", "awq"])
@pytest.mark.parametrize("options", [CPM_CU, IST], ids=["cpm.cu", "ist"])
def test_a_model_goes_from_and_to_every_other_int4_container(
    source: str, options: ExportOptions, tmp_path: Path
) -> None:
    other = registry.exporter(source)
    publish(other.prepare(model(), ExportOptions()), tmp_path / "theirs")
    ours = written(registry.open_checkpoint(tmp_path / "theirs"), tmp_path, options)
    check_equal(registry.open_checkpoint(ours), model())
    publish(other.prepare(registry.open_checkpoint(ours), ExportOptions()), tmp_path / "again")
    check_equal(registry.open_checkpoint(tmp_path / "again"), model())


def changed_tensors(folder: Path, change: Any) -> None:
    file = folder / "model_gptq.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


DAMAGES: Mapping[str, tuple[Any, type[QuantkitError], str]] = {
    "words missing": (lambda t: t.pop(f"{QKV}.qweight"), IncompleteCheckpoint, "qkv_proj.qweight is missing"),
    "scales missing": (lambda t: t.pop(f"{QKV}.scales"), IncompleteCheckpoint, "qkv_proj.scales is missing"),
    "words of another shape": (
        lambda t: t.update({f"{QKV}.qweight": t[f"{QKV}.qweight"].reshape(32, -1)}),
        InconsistentCheckpoint,
        r"qkv_proj.qweight is int32 \[32, 768\].*\[16, 1536\]",
    ),
    "float32 scales": (
        lambda t: t.update({f"{QKV}.scales": t[f"{QKV}.scales"].astype(np.float32)}),
        InconsistentCheckpoint,
        "qkv_proj.scales is float32",
    ),
    "a dense layer as well": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": np.zeros((256, 256), np.float16)}),
        InconsistentCheckpoint,
        "q_proj.weight is there dense and quantized",
    ),
    "zero points": (
        lambda t: t.update({f"{QKV}.qzeros": np.zeros((2, 96), np.int32)}),
        InconsistentCheckpoint,
        "qkv_proj.qzeros' is not part",
    ),
    "layers not fused": (
        lambda t: t.update({"model.layers.1.mlp.up_proj.qweight": np.zeros((32, 512), np.int32)}),
        InconsistentCheckpoint,
        "up_proj.qweight' is not part",
    ),
}


@pytest.mark.parametrize(("change", "kind", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_tensors_that_contradict_the_config_are_refused(
    change: Any, kind: type[QuantkitError], reason: str, tmp_path: Path
) -> None:
    folder = stranger(tmp_path / "theirs", model())
    changed_tensors(folder, change)
    with pytest.raises(kind, match=reason):
        registry.open_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [{"bits": 8}, {"group_size": 64}, {"group_size": None}, {"sym": False}, {"desc_act": True}, {"lm_head": True},
     {"bits": "4"}, {"group_size": True}],
)  # fmt: skip
def test_settings_that_are_not_marlins_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpec, match=rf"quantization_config: {next(iter(settings))} "):
        registry.open_checkpoint(stranger(tmp_path / "theirs", model(), **settings))


def test_a_scale_that_is_not_finite_is_refused_with_the_name_of_its_layer(tmp_path: Path) -> None:
    folder = stranger(tmp_path / "theirs", model())
    changed_tensors(folder, lambda tensors: tensors[f"{QKV}.scales"].__setitem__((1, 300), np.inf))
    back = registry.open_checkpoint(folder)
    tensor_of(back, "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(QuantkitError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight: .* NaN or infinite"):
        tensor_of(back, "model.layers.0.self_attn.k_proj.weight")


def test_only_marlin_folders_are_recognized(tmp_path: Path) -> None:
    assert not EXPORTER.recognizes(tmp_path)
    publish(registry.exporter("compressed-tensors").prepare(model(), ExportOptions()), tmp_path / "other")
    assert not EXPORTER.recognizes(tmp_path / "other")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert not EXPORTER.recognizes(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "marlin"}}')
    assert EXPORTER.recognizes(tmp_path)

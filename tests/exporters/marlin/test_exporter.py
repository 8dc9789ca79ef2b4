"""The folders of both Marlin targets against what their loaders look for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit import registry
from quantkit.errors import UnsupportedSpec
from quantkit.exporters.marlin import exporter as marlin
from quantkit.exporters.marlin.exporter import EXPORTER
from quantkit.files.planned_files import PlannedArtifact
from quantkit.files.safetensors_writer import plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.marlin_layout import grouped_permutation, reference_pack, single_permutation
from tests.support.marlin_models import (
    CPM_CU,
    INT4,
    IST,
    LLAMA,
    LONGROPE,
    MINICPM,
    PER_ROW,
    QKV,
    check_equal,
    config_of,
    model,
    tensor_of,
    written,
)
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model, random_quantized

BLOCK = [
    "input_layernorm.weight",
    "mlp.down_proj.qweight",
    "mlp.down_proj.scales",
    "mlp.gate_up_proj.qweight",
    "mlp.gate_up_proj.scales",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.qweight",
    "self_attn.o_proj.scales",
    "self_attn.qkv_proj.qweight",
    "self_attn.qkv_proj.scales",
]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight"]


@pytest.mark.parametrize(("kind", "outside"), [("minicpm", OUTSIDE), ("llama", ["lm_head.weight", *OUTSIDE])])
def test_cpm_cu_finds_exactly_the_names_that_it_knows(kind: str, outside: list[str], tmp_path: Path) -> None:
    folder = written(model(kind), tmp_path)
    names = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in BLOCK]
    assert sorted(load_file(folder / "model_gptq.safetensors")) == sorted([*names, *outside])
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == ["model_gptq.safetensors"]


@pytest.mark.parametrize("kind", ["minicpm", "straddling"])
def test_fused_matrices_are_joined_before_they_are_ordered(kind: str, tmp_path: Path) -> None:
    given = model(kind)
    tensors = load_file(written(given, tmp_path) / "model_gptq.safetensors")
    order = grouped_permutation() if kind == "minicpm" else single_permutation()
    fused = {
        "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "self_attn.o_proj": ["self_attn.o_proj"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.down_proj": ["mlp.down_proj"],
    }
    for module, parts in fused.items():
        layers = [tensor_of(given, f"model.layers.0.{part}.weight") for part in parts]
        codes = np.concatenate([layer.codes for layer in layers])
        scales = np.concatenate([layer.scale for layer in layers]).T
        words, found = tensors[f"model.layers.0.{module}.qweight"], tensors[f"model.layers.0.{module}.scales"]
        assert words.dtype == np.int32
        assert found.dtype == np.float16
        assert np.array_equal(words.view(np.uint32), reference_pack(codes)), module
        assert found.shape == scales.shape
        assert np.array_equal(found, scales.reshape(-1, len(order))[:, order].reshape(scales.shape)), module


@pytest.mark.parametrize("kind", ["minicpm", "llama", "straddling"])
def test_what_cpm_cu_loads_reads_back_as_it_was(kind: str, tmp_path: Path) -> None:
    folder = written(model(kind), tmp_path)
    back = registry.open_checkpoint(folder)
    assert back.format == "marlin"
    assert back.spec == model(kind).spec
    check_equal(back, model(kind))


def test_the_config_has_every_key_that_cpm_cu_reads(tmp_path: Path) -> None:
    source = {key: value for key, value in MINICPM.items() if key not in ("scale_depth", "num_key_value_heads")}
    config = config_of(written(quantized_model(source, linears(INT4)), tmp_path))
    expected = {
        "vocab_size": 97,
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": LONGROPE,
        "scale_emb": 12,
        "dim_model_base": 16,
        "scale_depth": 1.0,
        "mup_denominator": 32,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "sparse_config": {"topk": 64, "block_size": 64},
        "model_type": "minicpm",
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
    }
    assert {key: config.get(key) for key in expected} == expected
    assert config["quantization_config"] == {
        "bits": 4,
        "checkpoint_format": "marlin",
        "desc_act": False,
        "group_size": 128,
        "is_marlin_format": True,
        "lm_head": False,
        "quant_method": "gptq",
        "static_groups": True,
        "sym": True,
    }


def test_a_llama_has_none_of_the_scalars(tmp_path: Path) -> None:
    """CPM.cu takes a scalar that is there, whatever the architecture; EAGLE heads must have the same ones."""
    (tmp_path / "folded").mkdir()
    plain = {key: value for key, value in LLAMA.items() if key not in ("scale_emb", "dim_model_base", "scale_depth")}
    config = config_of(written(quantized_model(plain, linears(INT4)), tmp_path))
    assert {"scale_emb", "dim_model_base", "scale_depth"}.isdisjoint(config)
    folded = config_of(written(model(), tmp_path / "folded", ExportOptions(arch="llama")))
    assert {"scale_emb", "dim_model_base", "scale_depth"}.isdisjoint(folded)
    assert folded["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("spelling", [{"type": "su"}, {"type": "longrope"}])
def test_older_spellings_of_longrope_become_the_one_that_cpm_cu_knows(spelling: dict[str, str], tmp_path: Path) -> None:
    scaling = {**{key: value for key, value in LONGROPE.items() if key != "rope_type"}, **spelling}
    folder = written(quantized_model({**MINICPM, "rope_scaling": scaling}, linears(INT4)), tmp_path)
    assert config_of(folder)["rope_scaling"] == LONGROPE


def test_the_newer_name_of_rope_scaling_becomes_the_older(tmp_path: Path) -> None:
    newer = {**MINICPM, "rope_scaling": None, "rope_parameters": {**LONGROPE, "rope_theta": 5e5}}
    config = config_of(written(quantized_model(newer, linears(INT4)), tmp_path))
    assert config["rope_scaling"] == LONGROPE
    assert config["rope_theta"] == 5e5
    assert "rope_parameters" not in config


BFLOAT16 = AffineGroups(bits=4, group_size=128, scale_dtype="bfloat16")


def with_bfloat16_scales(**changed: np.float32) -> Checkpoint:
    """The model with scales that float16 holds, but for the layers named with `_` for `.`: their first is as given."""
    replaced = {}
    for seed, (name, weight) in enumerate(model().weights.items()):
        if isinstance(weight, QuantizedView):
            tensor = random_quantized(weight.shape, BFLOAT16, seed)
            scale = np.where(np.abs(tensor.scale.astype(np.float32)) < 2**-13, 0, tensor.scale)
            scale[0, 0] = changed.get(name.replace(".", "_"), 0)
            replaced[name] = replace(tensor, arrays={**tensor.arrays, "scale": scale.astype(tensor.scale.dtype)})
    return quantized_model(MINICPM, linears(BFLOAT16), replaced=replaced)


def test_scales_of_bfloat16_are_stored_in_float16_where_it_holds_them(tmp_path: Path) -> None:
    given = with_bfloat16_scales()
    check_equal(registry.open_checkpoint(written(given, tmp_path)), given)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_scale_that_float16_does_not_hold_leaves_nothing_behind(scale: float, tmp_path: Path) -> None:
    given = with_bfloat16_scales(model_layers_1_mlp_up_proj_weight=np.float32(scale))
    with pytest.raises(UnsupportedSpec, match=r"layers\.1\.mlp\.up_proj.*float16 scales, which cannot hold"):
        written(given, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_float32_weights_become_float16_and_sixteen_bits_stay(tmp_path: Path) -> None:
    wide = {
        name: replace(weight, dtype=np.dtype(np.float32), fetch=lambda a, b, w=weight: w.fetch(a, b).astype(np.float32))
        if isinstance(weight, TensorView) and weight.name != "model.norm.weight"
        else weight
        for name, weight in model().weights.items()
    }
    folder = written(replace(model(), weights=wide), tmp_path)
    assert config_of(folder)["torch_dtype"] == "float16"
    back = registry.open_checkpoint(folder)
    assert back.weights["model.embed_tokens.weight"].dtype == np.float16  # type: ignore[union-attr]
    assert str(back.weights["model.norm.weight"].dtype) == "bfloat16"  # type: ignore[union-attr]


def test_beyond_one_shard_there_is_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marlin, "plan_safetensors", partial(plan_safetensors, max_shard_bytes=300_000))
    folder = written(model(), tmp_path)
    assert [path.name for path in folder.glob("*.index.json")] == ["model.safetensors.index.json"]
    assert len(list(folder.glob("*.safetensors"))) == 4
    check_equal(registry.open_checkpoint(folder), model())


@pytest.mark.parametrize("spec", [INT4, PER_ROW])
def test_the_checkpoint_of_the_kernels_authors_has_every_layer_by_itself(spec: AffineGroups, tmp_path: Path) -> None:
    given = quantized_model(MINICPM, linears(spec))
    folder = written(given, tmp_path, IST)
    tensors = load_file(folder / "model.safetensors")
    order = grouped_permutation() if spec is INT4 else single_permutation()
    for name, weight in given.weights.items():
        module = name.removesuffix(".weight")
        if isinstance(weight, TensorView):
            assert name in tensors
            continue
        tensor = weight.read()
        assert np.array_equal(tensors[f"{module}.B"].view(np.uint32), reference_pack(tensor.codes)), name
        scales = tensor.scale.T
        assert np.array_equal(tensors[f"{module}.s"], scales.reshape(-1, len(order))[:, order].reshape(scales.shape))
    assert len(tensors) == len(given.weights) + 14
    settings = json.loads((folder / "quantize_config.json").read_text())
    assert settings == config_of(folder)["quantization_config"]
    assert settings["is_marlin_format"] is True
    assert settings["checkpoint_format"] == "marlin"
    assert settings["group_size"] == spec.group_size
    back = registry.open_checkpoint(folder)
    assert back.format == "marlin"
    check_equal(back, given)


def test_shapes_that_only_the_other_sparse_kernels_are_built_for_are_told() -> None:
    """CPM.cu tells MiniCPM4 by 16 layers per key/value head; its sparse kernels want 2 such heads and 32 heads."""
    told = tiny_config(
        hidden_size=128, intermediate_size=128, num_hidden_layers=32, num_attention_heads=4, num_key_value_heads=2
    )
    assert any(
        "--model-type minicpm" in note
        for note in EXPORTER.prepare(quantized_model(told, linears(PER_ROW)), CPM_CU).notes
    )
    assert EXPORTER.prepare(model(), CPM_CU).notes == ()


def test_a_plan_names_every_matrix_once() -> None:
    planned: PlannedArtifact = EXPORTER.prepare(model(), CPM_CU)
    names = [tensor.name for tensor in planned.tensors]
    assert len(names) == len(set(names)) == 2 + 2 * 6
    fused = next(tensor for tensor in planned.tensors if tensor.name == QKV)
    assert (fused.shape, fused.type) == ((768, 256), "int4 g128 sym")
    assert fused.nbytes == 768 * 256 // 2 + 768 * 2 * SCALE_DTYPES["float16"].itemsize
    assert planned.options == {"arch": "native", "target": "cpm.cu"}

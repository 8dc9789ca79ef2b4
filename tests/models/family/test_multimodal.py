"""The text model of MiniCPM-V and -o: taken where a MiniCPM or a Llama is inside, else refused by its true name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, UnsupportedModel
from quantkit.models.family.multimodal import is_multimodal, text_config
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from tests.support.family import CONFIGS, TOWERS, write_member
from tests.support.tiny import tiny_config, tiny_tensors, write_tensors

V4 = "MiniCPM4-3B"
SOUND = {
    "apm.layers.0.fc1.weight": np.ones((2, 4), np.float32),
    "audio_projection_layer.linear1.weight": np.ones((2, 4), np.float32),
    "tts.model.layers.0.self_attn.q_proj.weight": np.ones((2, 4), np.float32),
}
MUP = {**tiny_config(hidden=64, intermediate=64, tie=False), "architectures": ["MiniCPMV"], "model_type": "minicpmv"}
"""MiniCPM-V and MiniCPM-V-2: a MiniCPM-2B inside, no version."""
PLAIN = {key: value for key, value in MUP.items() if key not in ("scale_emb", "scale_depth", "dim_model_base")}


def written(folder: Path, config: dict[str, Any], more: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    text = {f"llm.{name}": tensor for name, tensor in tiny_tensors(config).items()}
    write_tensors(folder, text | more)
    return folder


def test_minicpm_v_4_is_a_llama_whose_heads_are_wider_than_its_share(tmp_path: Path) -> None:
    checkpoint = registry.open_checkpoint(write_member(tmp_path / "v4", V4))
    spec = checkpoint.spec
    assert (spec.architecture, spec.head_dim, spec.hidden_size // spec.num_attention_heads) == ("llama", 128, 64)
    assert (spec.scale_emb, spec.residual_scale, spec.logit_divisor) == (1.0, 1.0, 1.0)
    assert spec.rope.original_max_position_embeddings == 32786
    assert spec.rope.attention_factor == 1.0
    told = "only the text model under 'llm.' is read; 2 other tensors are left aside (resampler., vpm.)"
    assert told in checkpoint.notes
    assert not any("vision_config" in note or "not known" in note for note in checkpoint.notes)


def test_what_is_written_of_it_is_a_plain_text_model_that_transformers_runs_alike(tmp_path: Path) -> None:
    checkpoint = registry.open_checkpoint(write_member(tmp_path / "v4", V4))
    out = publish(registry.exporter("hf").prepare(checkpoint, ExportOptions(type="f32")), tmp_path / "out").path
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert not {"vision_config", "slice_config", "query_num", "auto_map", "version"} & config.keys()
    assert all(name.startswith(("model.", "lm_head.")) for name in registry.open_checkpoint(out).weights)
    ids = [1, 5, 900, 17, 3]
    with (
        registry.runtime("transformers").open(out) as theirs,
        registry.runtime("reference").open(tmp_path / "v4") as us,
    ):
        np.testing.assert_allclose(theirs.logits(ids), us.logits(ids), atol=1e-4)


def test_minicpm_v_2_has_a_minicpm_inside_and_is_exported_as_one_or_folded(tmp_path: Path) -> None:
    checkpoint = registry.open_checkpoint(written(tmp_path / "v2", MUP | {"query_num": 64, "patch_size": 14}, TOWERS))
    assert checkpoint.spec == parse_config(tiny_config(hidden=64, intermediate=64, tie=False))
    for arch, model_type in (("native", "minicpm"), ("llama", "llama")):
        out = publish(registry.exporter("hf").prepare(checkpoint, ExportOptions(arch=arch)), tmp_path / arch).path
        assert json.loads((out / "config.json").read_text())["model_type"] == model_type
        assert registry.open_checkpoint(out).spec.architecture == model_type


TAKEN = {
    "MiniCPM-Llama3-V-2.5": (PLAIN, "llama"),
    "MiniCPM-V-4": (PLAIN | {"version": 4.0}, "llama"),
    "version as text": (PLAIN | {"version": "4.0"}, "llama"),
    "an -o with sound": (PLAIN | {"architectures": ["MiniCPMO"], "model_type": "minicpmo", "version": "4.0"}, "llama"),
    "by model_type alone": ({**PLAIN, "architectures": None}, "llama"),
    "MiniCPM-V-2": (MUP, "minicpm"),
    "an -o of a MiniCPM": (
        MUP | {"architectures": ["MiniCPMO"], "model_type": "minicpmo", "tts_config": {}},
        "minicpm",
    ),
}


@pytest.mark.parametrize("member", TAKEN)
def test_a_minicpm_or_a_llama_inside_is_taken_and_the_towers_named(member: str, tmp_path: Path) -> None:
    config, family = TAKEN[member]
    checkpoint = registry.open_checkpoint(written(tmp_path / "m", config, TOWERS | SOUND))
    assert checkpoint.spec.architecture == family
    (note,) = (note for note in checkpoint.notes if "left aside" in note)
    for tower in ("vpm.", "resampler.", "apm.", "audio_projection_layer.", "tts.", "5 other tensors"):
        assert tower in note


BIAS = {"llm.model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
NORM = {"llm.model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], tuple[str, ...]]] = {
    "V-2.6": (PLAIN | {"version": 2.6}, BIAS, ("MiniCPM-V-2.6 is Qwen2",)),
    "V-4.5": (PLAIN | {"version": 4.5}, NORM, ("MiniCPM-V-4.5 is Qwen3",)),
    "o-2.6": (PLAIN | {"architectures": ["MiniCPMO"], "version": "2.6"}, BIAS, ("MiniCPM-o-2.6 is Qwen2",)),
    "o-4.5": (PLAIN | {"architectures": ["MiniCPMO"], "version": 4.5}, NORM, ("MiniCPM-o-4.5 is Qwen3",)),
    "V-4.6": (PLAIN | {"architectures": ["MiniCPMV4_6ForConditionalGeneration"]}, {}, ("MiniCPM-V-4.6", "Qwen3.5")),
    "biases without a version": (PLAIN, BIAS, ("Qwen2 (biases",)),
    "norms under an unknown version": (PLAIN | {"version": 9.0}, NORM, ("Qwen3 (norms",)),
    "one scalar is missing": ({k: v for k, v in MUP.items() if k != "scale_depth"}, {}, ("no scale_depth",)),
    "no text model": ({k: v for k, v in PLAIN.items() if k != "num_hidden_layers"}, {}, ("no num_hidden_layers",)),
}


@pytest.mark.parametrize("member", OTHERS)
def test_another_family_inside_is_refused_by_its_name(member: str, tmp_path: Path) -> None:
    config, more, words = OTHERS[member]
    sizes = {"num_hidden_layers": 2, **config}
    folder = written(tmp_path / "m", sizes, more)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel) as caught:
        registry.open_checkpoint(folder)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_a_text_model_with_a_tensor_missing_or_too_much_is_refused(tmp_path: Path) -> None:
    tensors = {f"llm.{name}": tensor for name, tensor in tiny_tensors(PLAIN).items()} | TOWERS
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PLAIN))
    write_tensors(folder, {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up" not in name})
    with pytest.raises(IncompleteCheckpoint, match=r"under 'llm\.' 1 of the model's tensors .*layers\.1\.mlp\.up_proj"):
        registry.open_checkpoint(folder)
    write_tensors(folder, tensors | {"llm.model.layers.0.mlp.gate_proj.bias": np.ones(64, np.float32)})
    with pytest.raises(InconsistentCheckpoint, match=r"gate_proj\.bias"):
        registry.open_checkpoint(folder)


def test_a_text_model_is_no_multimodal_one() -> None:
    assert not is_multimodal(tiny_config())
    assert is_multimodal(CONFIGS[V4])
    assert not is_multimodal({"architectures": "MiniCPMV"})
    assert "patch_size" not in text_config(CONFIGS[V4], (), where="x")

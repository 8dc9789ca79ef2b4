"""MiniCPM-SALA's config: read as published, refused by name where it says more; and refused by every verb but two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

import quantkit
from quantkit import registry
from quantkit.calibration.samples import CalibrationFile
from quantkit.errors import BadConfig, BadOption, QuantkitError, UnsupportedModel
from quantkit.models.architectures.sala import SETTLED
from quantkit.models.family.members import MEMBERS
from quantkit.models.inspection import attention_memory, inspection
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import Role
from quantkit.pipeline.options import QuantizeOptions
from quantkit.protocols import ExportOptions
from quantkit.training.options import TrainingOptions
from quantkit.verification.engines import choose_engine, real_engine
from quantkit.verification.steps.identity import spec_from_json, spec_to_json
from tests.support.memory import memory_checkpoint, random_arrays
from tests.support.sala_definition import SALA_CONFIG

SOFTMAX_LAYERS = (0, 9, 16, 17, 22, 29, 30, 31)
PUBLISHED = {
    **SALA_CONFIG,
    "vocab_size": 73448,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "eos_token_id": [2, 73440],
    "dim_model_base": 256,
    "mixer_types": ["minicpm4" if layer in SOFTMAX_LAYERS else "lightning-attn" for layer in range(32)],
    "lightning_nh": 32,
    "lightning_nkv": 32,
    "lightning_head_dim": 128,
    "sparse_config": {
        "kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 2048, "topk": 64,
        "use_nope": False, "dense_len": 8192,
    },
}  # fmt: skip


def test_the_published_config_has_the_published_tensors() -> None:
    spec = parse_config(PUBLISHED)
    slots = {slot.name: slot.shape for slot in spec.slots()}
    assert slots["model.layers.0.self_attn.k_proj.weight"] == (256, 4096)
    assert slots["model.layers.0.self_attn.o_gate.weight"] == (4096, 4096)
    assert "model.layers.0.self_attn.q_norm.weight" not in slots
    own = {name.split(".1.")[1]: shape for name, shape in slots.items() if ".layers.1." in name}
    assert own == {
        "input_layernorm.weight": (4096,),
        **{f"self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvoz"},
        **{f"self_attn.{name}_norm.weight": (128,) for name in "qk"},
        "self_attn.o_norm.weight": (4096,),
        "post_attention_layernorm.weight": (4096,),
        "mlp.gate_proj.weight": (16384, 4096),
        "mlp.up_proj.weight": (16384, 4096),
        "mlp.down_proj.weight": (4096, 16384),
    }
    assert spec.weight_name(1, Role.Z) == "model.layers.1.self_attn.z_proj.weight"
    assert config_notes(PUBLISHED) == ()


def test_what_is_remembered_is_counted_by_the_kind_of_layer() -> None:
    spec = parse_config(PUBLISHED)
    assert spec.lightning is not None
    assert len(spec.lightning.layers) == 24
    assert spec.lightning.state_bytes == 24 * 32 * 128 * 128 * 4
    assert attention_memory(spec, 1000)[0] == 1000 * 8192, "8 KiB a token at 16 bits, as published"


def test_inspect_shows_the_layers_of_each_kind() -> None:
    facts = inspection(memory_checkpoint(SALA_CONFIG)).facts
    assert facts["softmax_attention_layers"].endswith(": 0, 3")
    assert facts["lightning_attention_layers"] == "2, 4 heads, 16 wide: 1-2"
    assert "at any length" in facts["lightning_states"]
    assert facts["rope"] == "theta 10000, in lightning layers only"
    assert "sparse_attention" in facts


def test_every_spelling_of_a_mixer_is_read() -> None:
    for word in ("lightning", "lightning_attn"):
        mixers = [word if mixer == "lightning-attn" else mixer for mixer in SALA_CONFIG["mixer_types"]]
        assert parse_config({**SALA_CONFIG, "mixer_types": mixers}) == parse_config(SALA_CONFIG)


@pytest.mark.parametrize("key", SETTLED)
@pytest.mark.parametrize("value", ["other", None])
def test_a_switch_that_is_otherwise_or_missing_is_refused_by_name(key: str, value: str | None) -> None:
    other = value and (not SETTLED[key] if isinstance(SETTLED[key], bool) else "1/d")
    with pytest.raises(UnsupportedModel, match=key):
        parse_config({**SALA_CONFIG, key: other})


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"mixer_types": None}, BadConfig, "mixer_types must be a list of 4 words"),
        ({"mixer_types": ["minicpm4"]}, BadConfig, "mixer_types must be a list of 4 words"),
        ({"mixer_types": ["minicpm4", "mamba", "minicpm4", "minicpm4"]}, UnsupportedModel, r"mixer_types\[1\] 'mamba'"),
        ({"mixer_types": ["minicpm4", ["x"], "minicpm4", "minicpm4"]}, UnsupportedModel, r"mixer_types\[1\] \['x'\]"),
        ({"lightning_nkv": 2}, UnsupportedModel, "lightning_nkv 2"),
        ({"lightning_nkv": None}, BadConfig, "lightning_nkv"),
        ({"lightning_nh": True}, BadConfig, "lightning_nh"),
        ({"lightning_head_dim": 32}, UnsupportedModel, "lightning_head_dim 32"),
        ({"lightning_layerwise_decay": True}, UnsupportedModel, "lightning_layerwise_decay"),
        ({"lightning_rope_scaling": {"a": 1}}, UnsupportedModel, "lightning_rope_scaling"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedModel, "dynamic"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ({"num_experts": 8}, UnsupportedModel, "num_experts"),
        ({"tie_word_embeddings": None}, BadConfig, "tie_word_embeddings"),
        ({"sparse_config": {"topk": 4, "other": 1}}, UnsupportedModel, "other"),
        ({"model_type": "minicpm"}, UnsupportedModel, "model_type"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(
    changes: dict[str, Any], error: type[QuantkitError], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        parse_config({**SALA_CONFIG, **changes})


def test_what_says_that_nothing_is_otherwise_is_passed_over() -> None:
    config = {**SALA_CONFIG, "lightning_layerwise_decay": False, "lightning_rope_scaling": None}
    assert parse_config(config) == parse_config(SALA_CONFIG)


def test_a_spec_comes_back_from_its_json() -> None:
    spec = parse_config(SALA_CONFIG)
    back = spec_from_json(json.loads(json.dumps(spec_to_json(spec))), "here")
    assert back == spec
    assert back != parse_config({**SALA_CONFIG, "mixer_types": ["minicpm4"] * 4})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "sala"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SALA_CONFIG), encoding="utf-8")
    save_file(random_arrays(parse_config(SALA_CONFIG)), path / "model.safetensors")
    return path


TRAINING = TrainingOptions(files=(CalibrationFile(path=Path("text")),), steps=1)
VERBS: dict[str, Callable[[Path, Path], object]] = {
    "plan": lambda model, out: quantkit.plan(model, ["gguf"]),
    "plan with a method": lambda model, out: quantkit.plan(model, ["gguf"], QuantizeOptions(method="rtn")),
    "quantize": lambda model, out: quantkit.quantize(model, out, QuantizeOptions(method="rtn")),
    "recover": lambda model, out: quantkit.recover(model, out, QuantizeOptions(method="ternary"), TRAINING),
    "golden": quantkit.record_golden,
    "verify": lambda model, out: quantkit.verify(model, against=model, needs_manifest=False),
    **{
        f"export {name}": lambda model, out, name=name: quantkit.export(name, model, out)
        for name in registry.names("exporters")
    },
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_does_not_know_the_layers_refuses_and_writes_nothing(verb: str, folder: Path) -> None:
    out = folder.parent / "out"
    with pytest.raises(UnsupportedModel, match="2 of its 4 layers") as refusal:
        VERBS[verb](folder, out)
    assert "--engine reference" in (refusal.value.hint or "")
    assert [path.name for path in folder.parent.iterdir()] == ["sala"]


@pytest.mark.parametrize("name", registry.names("exporters"))
def test_a_container_that_is_asked_past_the_verbs_refuses_as_well(name: str, folder: Path) -> None:
    with pytest.raises(QuantkitError):
        registry.exporter(name).prepare(registry.open_checkpoint(folder), ExportOptions())


def test_the_reference_alone_runs_it(folder: Path) -> None:
    checkpoint = registry.open_checkpoint(folder)
    assert real_engine(checkpoint) is None
    assert choose_engine("auto", checkpoint).name == "reference"
    with registry.runtime("reference").open(folder) as session:
        assert session.logits([1, 2, 3]).shape == (3, 97)
    for runtime in registry.engines():
        if runtime.name != "reference" and checkpoint.format in runtime.formats:
            with pytest.raises(BadOption, match=f"{runtime.name} knows no sala"):
                choose_engine(runtime.name, checkpoint)


def test_it_is_a_member_by_its_architecture() -> None:
    member = next(member for member in MEMBERS if member.architecture == "sala")
    assert (member.shape.kv_heads, member.contexts, member.refused) == (2, (524288,), None)
    assert member.limited is not None

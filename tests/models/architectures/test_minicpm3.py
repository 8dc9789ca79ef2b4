"""MiniCPM3's config: read as published, refused by name where it says more or less, and written as it was read."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest

from quantkit.errors import BadConfig, QuantkitError, UnsupportedModel
from quantkit.models.architectures._latent import NORM_EPS, LatentSpec
from quantkit.models.architectures.minicpm3 import with_norms_of, with_shared_eps
from quantkit.models.family.members import MEMBERS
from quantkit.models.family.recognition import described
from quantkit.models.inspection import inspection
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import LATENT_ROLES, NORM_ROLES, Role, architecture
from quantkit.verification.steps.identity import expected_spec, spec_differences, spec_from_json, spec_to_json
from tests.support.latent_definition import PUBLISHED, TINY, latent_arrays
from tests.support.memory import memory_checkpoint


def test_the_published_config_has_the_published_tensors() -> None:
    spec = parse_config(PUBLISHED)
    slots = {slot.name: slot.shape for slot in spec.slots()}
    assert {name.split(".1.")[1]: shape for name, shape in slots.items() if ".layers.1." in name} == {
        "input_layernorm.weight": (2560,),
        "self_attn.q_a_proj.weight": (768, 2560),
        "self_attn.q_a_layernorm.weight": (768,),
        "self_attn.q_b_proj.weight": (3840, 768),
        "self_attn.kv_a_proj_with_mqa.weight": (288, 2560),
        "self_attn.kv_a_layernorm.weight": (256,),
        "self_attn.kv_b_proj.weight": (5120, 256),
        "self_attn.o_proj.weight": (2560, 2560),
        "post_attention_layernorm.weight": (2560,),
        "mlp.gate_proj.weight": (6400, 2560),
        "mlp.up_proj.weight": (6400, 2560),
        "mlp.down_proj.weight": (2560, 6400),
    }
    assert round(sum(math.prod(shape) for shape in slots.values()) / 1e9, 2) == 4.07, "as published"
    assert "lm_head.weight" not in slots, "tied, which goes unsaid"


def test_every_default_is_materialised() -> None:
    spec = parse_config(PUBLISHED)
    assert spec.latent == LatentSpec(
        q_lora_rank=768, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, norm_eps=1e-6
    )
    assert (spec.head_dim, spec.rotary_dim, spec.num_key_value_heads) == (96, 32, 40)
    assert (spec.rms_norm_eps, spec.logit_divisor, spec.rope.theta) == (1e-5, 10.0, 10000.0)
    assert spec.residual_scale == 1.4 / 62**0.5
    assert len(spec.rope.short_factor) == 16
    assert spec.rope.attention_factor == 1.0


def test_the_same_tensors_by_another_reading() -> None:
    slots = {slot.name: slot.shape for slot in parse_config(TINY).slots()}
    assert slots == {name: values.shape for name, values in latent_arrays(TINY).items()}


def test_groups_hold_every_matrix_once_in_computing_order() -> None:
    spec = parse_config(TINY)
    matrices = [slot.role for slot in spec.slots() if slot.layer == 0 and len(slot.shape) == 2]
    assert sorted(spec.linear_roles) == sorted(matrices)
    assert spec.linear_roles == (
        *(Role.Q_A, Role.KV_A, Role.Q_B, Role.KV_B),
        *(Role.O, Role.GATE, Role.UP, Role.DOWN),
    )
    assert set(LATENT_ROLES) < set(spec.linear_roles)
    assert all(slot.role in NORM_ROLES for slot in spec.slots() if len(slot.shape) == 1)
    assert spec.readers[Role.Q_A_NORM] == (Role.Q_B,)
    assert spec.writers == (Role.O, Role.DOWN)


def test_notes_are_those_of_the_family() -> None:
    assert config_notes(PUBLISHED) == ()
    told = config_notes({**PUBLISHED, "kv_router": 2.0})
    assert any("kv_router" in line for line in told)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"scale_emb": None}, BadConfig, "scale_emb is missing"),
        ({"scale_depth": None}, BadConfig, "scale_depth is missing"),
        ({"dim_model_base": None}, BadConfig, "dim_model_base is missing"),
        ({"rms_norm_eps": None}, BadConfig, "rms_norm_eps is missing"),
        ({"q_lora_rank": None}, UnsupportedModel, "q_lora_rank null"),
        ({"kv_lora_rank": None}, BadConfig, "kv_lora_rank"),
        ({"kv_lora_rank": 0}, BadConfig, "kv_lora_rank"),
        ({"qk_nope_head_dim": "64"}, BadConfig, "qk_nope_head_dim"),
        ({"qk_rope_head_dim": 33}, BadConfig, "qk_rope_head_dim 33 is odd"),
        ({"qk_rope_head_dim": 64}, BadConfig, "short_factor"),
        ({"num_key_value_heads": 8}, UnsupportedModel, "num_key_value_heads 8"),
        ({"num_attention_heads": 39}, BadConfig, "39 does not divide"),
        ({"head_dim": 64}, UnsupportedModel, "head_dim 64 is not supported; only 32 or 96"),
        ({"qk_head_dim": 64}, UnsupportedModel, "qk_head_dim 64"),
        ({"softmax_scale": 32**-0.5}, UnsupportedModel, "softmax_scale"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ({"n_routed_experts": 8}, UnsupportedModel, "n_routed_experts"),
        ({"rope_interleave": True}, UnsupportedModel, "rope_interleave"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, UnsupportedModel, "yarn"),
        ({"model_type": "minicpm"}, UnsupportedModel, "model_type"),
        ({"sparse_config": {"topk": 4}}, None, "sparse_config"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_or_told_by_name(
    changes: dict[str, Any], error: type[QuantkitError] | None, complaint: str
) -> None:
    config = {**PUBLISHED, **changes}
    if error is None:
        assert any(complaint in note for note in config_notes(config))
        return
    with pytest.raises(error, match=complaint):
        parse_config(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 32},
        {"head_dim": 96, "qk_head_dim": 96},
        {"v_head_dim": 64},
        {"model_type": "minicpm3"},
        {"num_key_value_heads": None},
    ],
)
def test_what_loaders_write_of_the_same_model_is_the_same(changes: dict[str, Any]) -> None:
    assert parse_config({**PUBLISHED, **changes}) == parse_config(PUBLISHED)


@pytest.mark.parametrize(
    "changes",
    [{}, {"v_head_dim": 48, "tie_word_embeddings": False}, {"rope_scaling": None, "rope_theta": 5e4}],
)
def test_the_written_config_is_read_as_the_same_model(changes: dict[str, Any]) -> None:
    config = {**TINY, **changes}
    spec = parse_config(config)
    family = architecture("minicpm3")
    written = json.loads(json.dumps(family.config(spec, config)))
    assert parse_config(written) == spec
    assert (written["model_type"], written["architectures"]) == ("minicpm3", ["MiniCPM3ForCausalLM"])
    assert "auto_map" not in written
    assert parse_config(family.understood(config)) == spec
    if spec.rope.kind == "longrope":
        assert written["rope_scaling"]["type"] == written["rope_scaling"]["rope_type"] == "longrope"


def test_no_llama_is_made_of_it() -> None:
    spec = parse_config(TINY)
    for refused in (spec.folded, lambda: spec.fold_factor(Role.EMBED)):
        with pytest.raises(UnsupportedModel, match="latent attention") as refusal:
            refused()
        assert "--arch llama" in (refusal.value.hint or "")


def test_a_spec_comes_back_from_its_json() -> None:
    spec = parse_config(TINY)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec))), "here") == spec


SEEDED = {
    "swapped ranks": {"q_lora_rank": 256, "kv_lora_rank": 768},
    "swapped parts of a head": {"qk_nope_head_dim": 32, "qk_rope_head_dim": 64},
    **{field.name: {field.name: 48} for field in fields(LatentSpec) if field.name != "norm_eps"},
    "norms of latents that nobody computes": {"norm_eps": 1e-4},
}


@pytest.mark.parametrize("fault", SEEDED)
def test_a_seeded_fault_is_found_by_its_name(fault: str) -> None:
    spec = parse_config(TINY)
    assert spec.latent is not None
    wrong = replace(spec, latent=replace(spec.latent, **SEEDED[fault]))  # type: ignore[arg-type]
    lines = list(spec_differences(expected_spec(spec, wrong), wrong))
    assert len(lines) == len(SEEDED[fault])
    assert all(any(line.startswith(f"latent.{name} is ") for line in lines) for name in SEEDED[fault])


def test_another_epsilon_of_all_norms_is_found_whatever_those_of_latents_are() -> None:
    spec = parse_config(TINY)
    for wrong in (replace(spec, rms_norm_eps=1e-6), with_shared_eps(replace(spec, rms_norm_eps=2e-5))):
        (line,) = spec_differences(expected_spec(spec, wrong), wrong)
        assert line.startswith("rms_norm_eps is ")


def test_a_model_without_latents_is_told_from_one_with() -> None:
    spec = parse_config(TINY)
    without = replace(spec, latent=None)
    assert len(list(spec_differences(spec, without))) == len(list(spec_differences(without, spec))) == 1


def test_norms_of_latents_may_be_either_of_two() -> None:
    spec = parse_config(TINY)
    shared = with_shared_eps(spec)
    assert spec.latent is not None
    assert shared.latent == replace(spec.latent, norm_eps=1e-5)
    assert with_norms_of(spec, shared) == shared
    assert with_norms_of(shared, spec) == spec
    other = replace(spec, latent=replace(spec.latent, norm_eps=3e-6))
    assert with_norms_of(spec, other) == spec
    assert NORM_EPS == 1e-6


def test_inspect_names_it() -> None:
    member = next(member for member in MEMBERS if member.architecture == "minicpm3")
    assert member.refused is None
    spec = parse_config(PUBLISHED)
    facts = {key: getattr(spec, key) for key in spec.__slots__}
    assert described(facts, "minicpm3") == "MiniCPM3-4B"
    shown = inspection(memory_checkpoint(TINY, latent_arrays(TINY))).facts
    assert (
        shown["latent_attention"] == "queries of 768, keys and values of 256; heads 64 + 32 (rotated), values 64 wide"
    )

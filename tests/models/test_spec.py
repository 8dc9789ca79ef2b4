"""Every config of the family becomes the model that was published: dimensions, scalars, RoPE and parameter counts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from quantkit.errors import BadConfig, QuantkitError, UnsupportedModel
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES, NORM_ROLES, Role

MUP = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


def longrope(pairs: int, original: int, **extra: Any) -> dict[str, Any]:
    """LongRoPE as released: short and long factors equal."""
    factors = [1.0 + 50.0 * i / pairs for i in range(pairs)]
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": original,
        **extra,
    }


def minicpm(  # noqa: PLR0917 - one row of the family's table
    vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, context: int, **rest: Any
) -> dict[str, Any]:
    return {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "hidden_act": "silu",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": [2, 73440],
        **MUP,
        **rest,
    }


MINICPM4_05B = minicpm(73448, 1024, 4096, 24, 16, 2, 32768, rope_scaling=longrope(32, 32768))
"""As released: `tie_word_embeddings`, `rope_theta`, `pad_token_id` and `mup_denominator` are not there."""
MINICPM4_8B = minicpm(
    73448, 4096, 16384, 32, 32, 2, 32768, rope_scaling=longrope(64, 32768), rope_theta=10000.0, rms_norm_eps=1e-6,
    tie_word_embeddings=False, pad_token_id=2, mup_denominator=32,
)  # fmt: skip
MINICPM41_8B = MINICPM4_8B | {"max_position_embeddings": 65536, "rope_scaling": longrope(64, 65536)}
MINICPM4_3B = minicpm(
    73448, 2560, 10240, 32, 32, 2, 32768, rope_scaling=longrope(64, 32786, factor=1.0), head_dim=128,
    tie_word_embeddings=False, rms_norm_eps=1e-6, pad_token_id=2,
)  # fmt: skip
BITCPM4_1B = minicpm(73448, 1536, 3840, 52, 24, 8, 32768, eos_token_id=2) | {
    "model_type": None,
    "rope_scaling": {key: value for key, value in longrope(32, 32768).items() if key != "rope_type"} | {"type": "su"},
}
MINICPM_2B = minicpm(122753, 2304, 5760, 40, 36, 36, 2048, rope_scaling=None, rope_theta=10000, eos_token_id=2)
MINICPM5_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 130560,
    "hidden_size": 1536,
    "intermediate_size": 4608,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": [1, 130073],
}

FAMILY = {
    "MiniCPM4-0.5B": (MINICPM4_05B, 433_873_920),  # 867,747,840 bytes of bf16
    "MiniCPM4-8B": (MINICPM4_8B, 8_185_253_888),
    "MiniCPM4.1-8B": (MINICPM41_8B, 8_185_253_888),
    "MiniCPM4-3B": (MINICPM4_3B, 3_605_834_240),  # 7.2117 GB of bf16
    "BitCPM4-1B": (BITCPM4_1B, 1_360_258_560),  # 2.7205 GB of bf16
    "MiniCPM-2B": (MINICPM_2B, 2_724_880_896),
    "MiniCPM5-1B": (MINICPM5_1B, 1_080_632_832),
}


@pytest.mark.parametrize(("config", "parameters"), FAMILY.values(), ids=FAMILY.keys())
def test_a_family_config_has_the_published_number_of_parameters(config: dict[str, Any], parameters: int) -> None:
    assert sum(math.prod(slot.shape) for slot in parse_config(config).slots()) == parameters


@pytest.mark.parametrize(
    ("config", "residual_scale", "logit_divisor"),
    [
        (MINICPM4_05B, 0.2857738, 4.0),
        (MINICPM4_8B, 0.2474874, 16.0),
        (MINICPM41_8B, 0.2474874, 16.0),
        (MINICPM4_3B, 0.2474874, 10.0),
        (BITCPM4_1B, 0.1941451, 6.0),
        (MINICPM_2B, 0.2213594, 9.0),
    ],
)
def test_the_three_scalars_are_those_of_the_paper(
    config: dict[str, Any], residual_scale: float, logit_divisor: float
) -> None:
    spec = parse_config(config)
    assert spec.scale_emb == 12.0
    assert round(spec.residual_scale, 7) == residual_scale
    assert spec.logit_divisor == logit_divisor


def test_what_the_05b_config_omits_gets_the_family_defaults() -> None:
    spec = parse_config(MINICPM4_05B)
    assert spec.tie_word_embeddings is True
    assert spec.rope.theta == 10000.0
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2, 73440), None)
    assert (spec.head_dim, spec.rms_norm_eps, spec.architecture) == (64, 1e-5, "minicpm")
    assert "lm_head.weight" not in {slot.name for slot in spec.slots()}


def test_a_bare_minicpm_config_gets_every_default_of_the_remote_code() -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    spec = parse_config({"model_type": "minicpm"} | {key: MINICPM4_05B[key] for key in sizes})
    assert (spec.num_key_value_heads, spec.rms_norm_eps, spec.max_position_embeddings) == (16, 1e-6, 2048)
    assert (spec.scale_emb, spec.logit_divisor, spec.residual_scale) == (1.0, 1024.0, 1 / math.sqrt(24))
    assert (spec.rope.kind, spec.rope.factors(10**6)) == ("default", ())
    assert spec.eos_token_ids == (2,)


def test_head_dim_is_taken_from_the_config_where_hidden_over_heads_differs() -> None:
    spec = parse_config(MINICPM4_3B)
    assert spec.head_dim == 128
    assert spec.layer_shape(Role.Q) == (4096, 2560)
    assert spec.layer_shape(Role.K) == (256, 2560)
    assert spec.layer_shape(Role.O) == (2560, 4096)
    assert spec.layer_shape(Role.DOWN) == (2560, 10240)


def test_a_llama_config_has_no_scalars_and_unties_by_default() -> None:
    spec = parse_config({key: value for key, value in MINICPM5_1B.items() if key != "tie_word_embeddings"})
    assert (spec.scale_emb, spec.residual_scale, spec.logit_divisor) == (1.0, 1.0, 1.0)
    assert spec.tie_word_embeddings is False
    assert (spec.rope.theta, spec.head_dim, spec.eos_token_ids) == (5000000.0, 128, (1, 130073))
    assert spec.folded() == spec


def test_slots_follow_the_forward_pass() -> None:
    names = [slot.name for slot in parse_config(MINICPM4_8B | {"num_hidden_layers": 1}).slots()]
    assert names == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]


def test_every_slot_of_a_block_is_a_linear_or_a_norm() -> None:
    for slot in parse_config(MINICPM4_8B).slots():
        if slot.layer is not None:
            assert (slot.role in LINEAR_ROLES) != (slot.role in NORM_ROLES)
            assert len(slot.shape) == (1 if slot.role in NORM_ROLES else 2)


def test_folding_scales_layers_and_head_by_powers_of_two_and_the_residual_stream_by_the_rest() -> None:
    spec = parse_config(MINICPM4_05B)
    factors = {role: spec.fold_factor(role) for role in Role}
    stream = 0.25 / (1.4 / math.sqrt(24))
    scaled = {role: factor for role, factor in factors.items() if factor != 1.0}
    assert scaled == {Role.EMBED: 12.0 * stream, Role.LM_HEAD: 0.25, Role.O: 0.25, Role.DOWN: 0.25}
    folded = spec.folded()
    assert folded.rms_norm_eps == spec.rms_norm_eps * stream**2
    assert folded.architecture == "llama"
    assert not folded.tie_word_embeddings, "embedding times 12 and head over 4 cannot be one matrix"
    assert all(folded.fold_factor(role) == 1.0 for role in Role)


def test_a_head_divided_by_no_power_of_two_leaves_the_rest_to_the_final_norm() -> None:
    spec = parse_config(MINICPM4_05B | {"dim_model_base": 160})
    assert (spec.fold_factor(Role.LM_HEAD), spec.fold_factor(Role.FINAL_NORM)) == (1 / 8, 8 / 6.4)


def test_folding_keeps_the_tie_where_both_ends_need_the_same_factor() -> None:
    spec = parse_config(MINICPM4_05B | {"scale_emb": 0.25, "scale_depth": math.sqrt(24)})
    assert spec.fold_factor(Role.EMBED) == spec.fold_factor(Role.LM_HEAD)
    assert spec.folded().tie_word_embeddings


def test_longrope_that_does_not_extend_the_context_leaves_cos_and_sin_alone() -> None:
    for config in (MINICPM4_05B, MINICPM4_8B, MINICPM41_8B, MINICPM4_3B, BITCPM4_1B):
        rope = parse_config(config).rope
        assert rope.kind == "longrope"
        assert rope.attention_factor == 1.0
        assert len(rope.factors(1)) == parse_config(config).head_dim // 2


def test_extended_longrope_picks_factors_by_length_and_scales_cos_and_sin() -> None:
    scaling = longrope(64, 32768) | {"long_factor": [9.0] * 64}
    rope = parse_config(MINICPM4_8B | {"rope_scaling": scaling, "max_position_embeddings": 131072}).rope
    assert rope.attention_factor == math.sqrt(1 + math.log(4) / math.log(32768))
    assert rope.factors(32768) == rope.short_factor
    assert rope.factors(32769) == (9.0,) * 64


def test_rope_parameters_of_transformers_5_say_the_same_as_the_old_keys() -> None:
    parameters = longrope(32, 32768) | {"rope_theta": 10000.0}
    moved = {key: value for key, value in MINICPM4_05B.items() if key != "rope_scaling"}
    assert parse_config(moved | {"rope_parameters": parameters}) == parse_config(MINICPM4_05B)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": ["MiniCPMOForCausalLM"]}, "MiniCPMOForCausalLM' is not supported"),
        ({"architectures": ["MiniCPMSALAForCausalLM"], "model_type": "minicpm_sala"}, "not supported; only default"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "not supported"),
        ({"architectures": None, "model_type": None}, "not supported"),
        ({"hidden_act": "fatrelu"}, "hidden_act 'fatrelu'"),
        ({"num_experts": 8}, "num_experts 8"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_ours_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnsupportedModel, match=complaint):
        parse_config(MINICPM4_05B | changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": None}, "hidden_size must be an integer from 1 to 16777216, is missing"),
        ({"hidden_size": "1024"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"hidden_size": 1 << 40}, "hidden_size must be an integer"),
        ({"vocab_size": -1}, "vocab_size must be an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 1024"),
        ({"num_attention_heads": 7}, "does not divide"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 16"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive finite number"),
        ({"scale_depth": float("nan")}, "scale_depth must be a positive finite number"),
        ({"scale_emb": float("inf")}, "scale_emb must be a positive finite number"),
        ({"dim_model_base": 0}, "dim_model_base must be a positive finite number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": [2, 73448]}, "eos_token_id must be a token id.* below vocab_size 73448"),
        ({"eos_token_id": [2, -2]}, "eos_token_id must be a token id"),
        ({"eos_token_id": [2, None]}, "eos_token_id must be a token id"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"bos_token_id": 1.5}, "bos_token_id must be a token id"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object or null"),
        ({"rope_scaling": longrope(31, 32768)}, "short_factor must be a list of 32 positive numbers"),
        ({"rope_scaling": longrope(32, 32768) | {"long_factor": [1.0] * 31 + [0]}}, "long_factor must be a list"),
        ({"rope_scaling": longrope(32, 1)}, "original_max_position_embeddings must be an integer from 2"),
        ({"architectures": "MiniCPMForCausalLM"}, "architectures must be a list of strings"),
    ],
)
def test_a_config_value_out_of_its_range_is_refused_by_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint):
        parse_config(MINICPM4_05B | changes)


@pytest.mark.parametrize(
    ("value", "eos", "bos"),
    [
        (None, (), None),
        (-1, (), None),
        ([], (), None),
        ([-1], (), None),
        (5, (5,), 5),
        ([5], (5,), 5),
        ([5, 7, 5], (5, 7), 5),
        ([5, -1], (5,), 5),
        (0, (0,), 0),
    ],
)
def test_tokens_are_none_one_or_many(value: Any, eos: tuple[int, ...], bos: int | None) -> None:
    spec = parse_config(MINICPM4_05B | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), value))
    assert (spec.eos_token_ids, spec.bos_token_id, spec.pad_token_id) == (eos, bos, bos)


def test_a_refusal_names_the_file_it_came_from_on_one_line() -> None:
    with pytest.raises(QuantkitError, match=r"^other\.json: ") as refusal:
        parse_config(MINICPM4_05B | {"architectures": ["a\nb\x1b[2J"]}, where="other.json")
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)

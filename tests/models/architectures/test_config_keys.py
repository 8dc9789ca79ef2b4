"""A config key that changes the function is understood or refused by name; what nobody knows is told."""

from __future__ import annotations

from typing import Any

import pytest

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.recognition import config_notes, parse_config
from quantkit.models.spec import architecture
from tests.support.memory import tiny_config

MINICPM = tiny_config()
LLAMA = tiny_config(
    architectures=["LlamaForCausalLM"], model_type="llama", scale_emb=None, scale_depth=None, dim_model_base=None
)
FAMILIES = pytest.mark.parametrize("config", [MINICPM, LLAMA], ids=["minicpm", "llama"])

CHANGING: dict[str, list[Any]] = {
    "hidden_act": ["gelu", "fatrelu", "relu"],
    "hidden_activation": ["gelu_pytorch_tanh"],
    "attention_bias": [True, 1],
    "mlp_bias": [True],
    "qkv_bias": [True],
    "num_experts": [8],
    "num_local_experts": [8, 1],
    "n_routed_experts": [64],
    "moe_intermediate_size": [512],
    "attn_logit_softcapping": [50.0],
    "final_logit_softcapping": [30.0],
    "attention_multiplier": [0.0078125, 1.0, "0.25"],
    "embedding_multiplier": [12.0],
    "residual_multiplier": [0.22],
    "logits_scaling": [8.0],
    "query_pre_attn_scalar": [256],
    "clip_qkv": [8.0],
    "qk_norm": [True],
    "use_qk_norm": [True],
    "sliding_window": [32, "4096"],
    "layer_types": [["sliding_attention", "full_attention", "full_attention"], "full_attention", [["x"]]],
    "no_rope_layers": [[1, 1, 0], [0], 4],
    "no_rope_layer_interval": [4],
    "partial_rotary_factor": [0.5, True, "1.0"],
    "rotary_pct": [0.25],
    "rotary_dim": [8],
    "rope_interleaved": [True],
    "position_embedding_type": ["alibi", "absolute"],
    "norm_type": ["layernorm"],
    "parallel_attn": [True],
    "q_lora_rank": [768],
    "kv_lora_rank": [256],
    "draft_vocab_size": [32000],
    "use_mup": [True],
    "mup_width_multiplier": [4.0],
    "compression_config": [{"format": "pack-quantized"}],
    "quantization": [{"bits": 4, "group_size": 64}],
    "is_encoder_decoder": [True],
    "attention_chunk_size": [8192],
    "hidden_act_param": [0.03],
    "moe_layers": [[1, 2]],
    "num_experts_per_tok": [2],
    "attn_logit_softcap": [30.0],
    "logit_scale": [0.0625],
    "attention_in_multiplier": [2.0],
    "rope_local_base_freq": [10000.0],
    "local_rope_theta": [10000.0],
    "rotary_emb_base": [10000],
    "mrope_section": [[16, 24, 24]],
    "sliding_window_pattern": [6],
    "use_nope": [True],
    "use_output_gate": [True],
    "scale_width": [10.0],
}
UNCHANGING: dict[str, list[Any]] = {
    "hidden_act": ["silu", None],
    "hidden_activation": ["silu", None],
    "attention_bias": [False, None, 0],
    "num_local_experts": [0, None],
    "attn_logit_softcapping": [None, 0, 0.0],
    "final_logit_softcapping": [None],
    "clip_qkv": [None],
    "qk_norm": [False],
    "parallel_attn": [False],
    "residual_multiplier": [1],
    "mrope_section": [None],
    "bias": [False],
    "_attn_implementation": ["eager", "sdpa", "flash_attention_2", None],
    "attn_implementation": ["flash_attention_2"],
    "_experts_implementation": ["eager"],
    "attention_multiplier": [16**-0.5, 0.25],
    "embedding_multiplier": [1, 1.0],
    "logits_scaling": [1.0],
    "query_pre_attn_scalar": [16],
    "sliding_window": [None, 64, 4096, 0, -1],
    "layer_types": [["full_attention"] * 3],
    "no_rope_layers": [[1, 1, 1], []],
    "no_rope_layer_interval": [0, None],
    "partial_rotary_factor": [1.0, 1],
    "rotary_dim": [16],
    "rope_interleaved": [False],
    "norm_type": ["rmsnorm"],
    "q_lora_rank": [None],
    "use_mup": [False],
    "quantization_config": [None],
    "pretraining_tp": [1],
    "attention_dropout": [0.0, 0.1],
    "mup_denominator": [32],
    "pad_token_id": [-1],
    "torch_dtype": ["bfloat16"],
    "id2label": [{"0": "LABEL_0"}],
}


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(key, value) for key, values in table.items() for value in values]


@FAMILIES
@pytest.mark.parametrize(("key", "value"), cases(CHANGING))
def test_a_key_that_changes_the_function_is_refused_by_name(config: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=rf"^there: {key} .* is not supported; "):
        parse_config({**config, key: value}, where="there")


@FAMILIES
@pytest.mark.parametrize(("key", "value"), cases(UNCHANGING))
def test_a_value_that_changes_nothing_is_taken_without_a_word(config: dict[str, Any], key: str, value: Any) -> None:
    assert parse_config({**config, key: value}) == parse_config(config)
    assert config_notes({**config, key: value}) == ()


@FAMILIES
def test_a_window_that_is_switched_off_is_none(config: dict[str, Any]) -> None:
    off = {**config, "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2}
    assert parse_config(off) == parse_config(config)
    with pytest.raises(UnsupportedModel, match="sliding_window 32") as refusal:
        parse_config({**off, "use_sliding_window": True})
    assert "max_position_embeddings to 32" in (refusal.value.hint or "")


@FAMILIES
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lightning_decay", 0.5), ("some_new_norm", 1), ("attention_sink_tokens", 1), ("logit_shift", [0.1]),
        ("extra", {"a": 1}), ("flavour", "sweet"), ("use_new_thing", True), ("num_nextn_predict_layers", 3),
        ("pretraining_tp", 2), ("embedding_size", 128),
    ],
)  # fmt: skip
def test_a_key_that_nobody_knows_is_told_in_one_line(config: dict[str, Any], key: str, value: Any) -> None:
    (note,) = config_notes({**config, key: value, "another_thing": 7}, where="there")
    assert note.startswith(f"there: not known and passed over: {key} {repr(value)[:40]}, another_thing 7; ")
    assert parse_config({**config, key: value}) == parse_config(config)


@FAMILIES
@pytest.mark.parametrize(("key", "value"), [("new_norm", None), ("new_norm", False), ("version", 1), ("x", {})])
def test_a_key_that_says_nothing_is_passed_over(config: dict[str, Any], key: str, value: Any) -> None:
    assert config_notes({**config, key: value}) == ()


def test_many_unknown_keys_are_one_line_without_control_characters() -> None:
    (note,) = config_notes({**LLAMA, **{f"key_{i}": f"\x1b[2J{i}\n" for i in range(20)}})
    assert "and 12 more" in note
    assert note.isprintable()


def test_the_scalars_of_a_minicpm_in_a_llama_are_told() -> None:
    """Tools that fold leave them behind; a Llama takes no notice of them."""
    assert parse_config({**LLAMA, "scale_emb": 12, "scale_depth": 1.4}) == parse_config(LLAMA)
    (note,) = config_notes({**LLAMA, "scale_emb": 12, "scale_depth": 1.4})
    assert "scale_emb 12, scale_depth 1.4" in note


@FAMILIES
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "kernels-community/flash-attn"), ("attn_implementation", "someone/else:function"),
        ("_attn_implementation_internal", "paged|someone/else"), ("experts_implementation", "someone/else"),
        ("kernel_config", {"RMSNorm": "someone/else:RMSNorm"}), ("_attn_implementation", {"text": "someone/else"}),
        ("attn_implementation", 7), ("_attn_implementation", ["eager"]),
    ],
)  # fmt: skip
def test_a_key_that_names_code_is_told_and_changes_nothing(config: dict[str, Any], key: str, value: Any) -> None:
    (note,) = config_notes({**config, key: value}, where="there")
    assert note == f"there: {key} {value!r} asks for code, which is neither loaded nor carried along"
    assert parse_config({**config, key: value}) == parse_config(config)


@FAMILIES
def test_what_is_written_is_made_from_what_is_understood(config: dict[str, Any]) -> None:
    strange = {"new_norm": 3, "_attn_implementation": "a/b", "auto_map": {"AutoConfig": "a/b--c.D"}, "dtype": "x"}
    family = architecture(parse_config(config).architecture)
    written = family.config(parse_config(config), {**config, **strange})
    assert not strange.keys() & written.keys()
    assert written == family.config(parse_config(config), config)
    assert parse_config(written) == parse_config(config)
    assert config_notes(written) == ()


@FAMILIES
def test_an_engine_is_handed_what_is_understood_in_the_configs_own_words(config: dict[str, Any]) -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "factor": 1.0}
    given = {**config, "rope_scaling": scaling, "hidden_act": "silu", "attn_implementation": "a/b", "x": "y"}
    handed = architecture(parse_config(config).architecture).understood(given)
    assert handed["rope_scaling"] is scaling
    assert handed == {key: value for key, value in given.items() if key in {*config, "rope_scaling"}}


def test_a_null_bos_means_none_and_a_silent_config_the_familys() -> None:
    assert parse_config({**LLAMA, "bos_token_id": None}).bos_token_id is None
    assert parse_config(LLAMA).bos_token_id == 1


def test_a_sparse_config_is_kept_and_told() -> None:
    sparse = {**MINICPM, "sparse_config": {"topk": 64, "kernel_size": 32}}
    assert parse_config(sparse) == parse_config(MINICPM)
    (note,) = config_notes(sparse)
    assert "sparse_config describes sparse attention; " in note
    assert "dense attention" in note
    written = architecture("minicpm").config(parse_config(sparse), sparse)
    assert written["sparse_config"] == sparse["sparse_config"]


@pytest.mark.parametrize(
    ("config", "kind"),
    [(LLAMA, "minicpm"), (LLAMA, "mistral"), (MINICPM, "llama"), (MINICPM, "minicpm_sala"), (LLAMA, 7)],
)
def test_a_model_type_of_another_family_is_refused(config: dict[str, Any], kind: object) -> None:
    with pytest.raises(UnsupportedModel, match=f"model_type {kind!r} contradicts architectures"):
        parse_config({**config, "model_type": kind})


def test_classes_of_two_families_are_refused() -> None:
    with pytest.raises(BadConfig, match="names models of 2 families"):
        parse_config({**MINICPM, "architectures": ["MiniCPMForCausalLM", "LlamaForCausalLM"]})


@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id"])
def test_an_id_of_minus_one_means_none(key: str) -> None:
    assert getattr(parse_config({**LLAMA, key: -1}), key) is None
    with pytest.raises(BadConfig, match=f"{key} must be a token id"):
        parse_config({**LLAMA, key: -2})
    if key == "pad_token_id":  # beyond the vocabulary it is none as well
        return
    with pytest.raises(BadConfig, match=f"{key} must be a token id"):
        parse_config({**LLAMA, key: 97})

"""What the keys of a config.json mean to a dense decoder.

A key that changes the function of a model, here or in a family with a similar config, is refused by name unless its
value changes nothing. Keys that steer training, text or loaders are passed over. Whatever else a config says is told
in one note: nobody here knows whether it matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import UnsupportedModel
from quantkit.models.config_reader import shown


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


READ = _words(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim",
    "rms_norm_eps max_position_embeddings rope_theta rope_scaling rope_parameters original_max_position_embeddings",
    "tie_word_embeddings bos_token_id eos_token_id pad_token_id",
)
"""Keys that a `ModelSpec` is made from."""

LOOKED_AT = _words("architectures model_type quantization_config sliding_window use_sliding_window max_window_layers")
"""Keys that are looked at beside them: here, or by the container's own reader."""

CODE = _words(
    "_attn_implementation _attn_implementation_internal _attn_implementation_autoset attn_implementation",
    "_experts_implementation _experts_implementation_internal experts_implementation kernel_config",
)
"""Keys by which a config chooses the code that an engine runs it with, or has fetched from a hub."""

ORDINARY_CODE = (True, False, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Their values that name code which an engine has itself."""

HARMLESS = _words(
    # how it was made, stored and is loaded
    "_name_or_path _commit_hash auto_map trust_remote_code torch_dtype dtype transformers_version use_cache",
    "torchscript use_bfloat16 use_flash_attn use_flash_attention_2 keys_to_ignore_at_inference tf_legacy_loss name",
    "license unsloth_fixed unsloth_version base_model_tp_plan base_model_pp_plan head_dtype return_dict",
    # training
    "initializer_range init_std attention_dropout attn_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout",
    "hidden_dropout_prob embedding_dropout dropout attention_probs_dropout_prob mup_denominator pruned_heads",
    "gradient_checkpointing router_aux_loss_coef output_router_logits z_loss_coefficient",
    "max_sequence_length seq_length",
    # text and generation
    "tokenizer_class unk_token_id sep_token_id mask_token_id decoder_start_token_id prefix max_length min_length",
    "do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p",
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids",
    "num_return_sequences output_scores return_dict_in_generate output_attentions output_hidden_states",
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens",
    "begin_suppress_tokens max_new_tokens",
    # other heads
    "finetuning_task id2label label2id num_labels problem_type task_specific_params chunk_size_feed_forward",
    "is_decoder tie_encoder_decoder cross_attention_hidden_size",
)
"""Keys with no part in what a model computes."""

FUNCTION_WORDS = _words(
    "act_fn activation alibi attn attention bias cap chunk conv dim divisor embed eps expert factor gate group head",
    "hidden kernel layer lora loop mamba mlp mask moe multiplier mup norm position qk query recurrent residual rope",
    "rotary scal share skip sink softmax sparse state stride theta window",
)
"""Parts of names that tell of arithmetic."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What some values are compared with: channels of a head, and the longest context in tokens."""

    head_dim: int
    context: int


Unchanging = Callable[[Any, Shape], bool]
"""Whether a value, which is not null, leaves the function as it is."""


def _off(value: object, shape: Shape) -> bool:
    return not value


def _one(value: object, shape: Shape) -> bool:
    return value == 1 and not isinstance(value, bool)


def _on(value: object, shape: Shape) -> bool:
    return value is True


def _head_dim(value: object, shape: Shape) -> bool:
    return value == shape.head_dim


def _of(*values: object) -> Unchanging:
    return lambda value, shape: value in values


def _full_attention(value: object, shape: Shape) -> bool:
    return isinstance(value, list) and set(map(str, value)) <= {"full_attention"}


def _all_with_rope(value: object, shape: Shape) -> bool:
    """Per layer 1 = with RoPE, as in SmolLM3 and Llama 4."""
    return isinstance(value, list) and all(item == 1 for item in value)


def _usual_softmax_scale(value: object, shape: Shape) -> bool:
    if not isinstance(value, (int, float)) or not 0 < value < 1e9:
        return False
    return math.isclose(value, shape.head_dim**-0.5, rel_tol=1e-6)


def _as_long_as_the_context(value: object, shape: Shape) -> bool:
    return value in (0, -1) or (isinstance(value, int) and value >= shape.context)


_RULES: Mapping[str, tuple[Unchanging, str]] = {
    "hidden_act hidden_activation activation_function": (_of("silu"), "only silu"),
    "hidden_act_param": (_off, "only silu"),
    "attention_bias mlp_bias qkv_bias attn_bias use_bias bias": (_off, "only layers without biases"),
    "num_experts num_local_experts n_routed_experts n_shared_experts moe_num_experts num_experts_per_tok "
    "num_experts_per_token moe_intermediate_size moe_layer_freq first_k_dense_replace num_shared_experts "
    "shared_expert_intermediate_size decoder_sparse_step moe_layers enable_moe_block moe_topk moe_top_k top_k_experts "
    "moe_num_shared_experts": (_off, "dense models only, no mixture of experts"),
    "attn_logit_softcapping final_logit_softcapping logit_soft_cap logits_soft_cap attention_logit_cap "
    "attn_softcap attn_logit_softcap final_logit_softcap logits_softcapping": (_off, "logits are not capped"),
    "embedding_multiplier residual_multiplier logits_scaling logit_scale output_multiplier lm_head_multiplier "
    "embedding_scale residual_scale rope_ratio rotary_pct rotary_percent rope_pct partial_rotary_factor "
    "attention_in_multiplier attention_out_multiplier key_multiplier value_multiplier logit_multiplier "
    "logits_multiplier embd_scale rope_scaling_factor scale_width width_multiplier": (_one, "only 1"),
    "attention_multiplier attention_scale softmax_scale": (_usual_softmax_scale, "only 1 / sqrt(head_dim)"),
    "query_pre_attn_scalar rotary_dim v_head_dim qk_head_dim": (_head_dim, "only head_dim"),
    "clip_qkv qkv_clip qk_norm use_qk_norm qk_layernorm use_qk_layernorm query_key_norm attention_sink "
    "use_attention_sinks attn_use_output_gate attention_output_gate use_output_gate head_gate use_post_norm "
    "use_pre_post_norm sandwich_norm attn_temperature_tuning use_nope lightning_use_rope linear_attn_config "
    "linear_num_key_heads full_attention_interval sliding_window_pattern attention_window_size local_attention "
    "global_attn_every_n_layers": (_off, "attention is Llama's"),
    "layer_types": (_full_attention, "only full_attention"),
    "no_rope_layers": (_all_with_rope, "every layer has RoPE"),
    "no_rope_layer_interval nope_layer_interval": (_off, "every layer has RoPE"),
    "attn_use_rope use_rope": (_on, "every layer has RoPE"),
    "rope_local_base_freq rope_global_base_freq local_rope_theta global_rope_theta swa_rope_theta rotary_base "
    "rotary_emb_base rope_freq_base mrope_section": (_off, "one RoPE for all layers, with rope_theta"),
    "rope_interleaved rope_interleave rotary_interleaved": (_off, "channel i turns with i + head_dim / 2"),
    "use_alibi alibi": (_off, "positions are RoPE's"),
    "position_embedding_type": (_of("rope", "rotary"), "positions are RoPE's"),
    "parallel_attn use_parallel_residual parallel_residual": (_off, "attention and MLP follow each other"),
    "norm_type": (_of("rmsnorm", "rms_norm", "rms"), "only RMSNorm"),
    "norm_after rmsnorm_add_unit_offset": (_off, "norms are Llama's"),
    "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim": (_off, "no latent attention"),
    "draft_vocab_size": (_off, "draft heads are no models"),
    "num_kv_shared_layers cross_layer_attention multi_query_attention is_encoder_decoder add_cross_attention "
    "attention_chunk_size mixer_types lightning_nh": (_off, "attention is Llama's"),
    "compression_config quantization": (_off, "only quantization_config tells of quantized weights"),
    "use_mup mup_width_multiplier mup_attn_multiplier mup_embeddings_scale": (_off, "only MiniCPM's scalars"),
}  # fmt: skip
"""Keys of similar configs, when they change nothing, and what to say when they do."""

NEUTRAL: Mapping[str, tuple[Unchanging, str]] = {key: rule for keys, rule in _RULES.items() for key in keys.split()}


def check_keys(config: Mapping[str, Any], where: str, shape: Shape) -> None:
    """Raise `UnsupportedModel` for a key that changes the function and is not understood."""
    for key, value in config.items():
        rule = NEUTRAL.get(key)
        if rule is not None and value is not None and not rule[0](value, shape):
            raise UnsupportedModel(f"{where}: {key} {shown(value)} is not supported; {rule[1]}")
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", True) is not False
    if window is not None and used and not _as_long_as_the_context(window, shape):
        raise UnsupportedModel(
            f"{where}: sliding_window {shown(window)} is not supported; every token attends to all before it",
            hint='say "use_sliding_window": false if it is not used, or lower max_position_embeddings to '
            f"{shown(window)}",
        )


def code_asked_for(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A line for every key that names code which no engine has itself; engines are not handed it."""
    asking = {key: config[key] for key in config if key in CODE and config[key] is not None}
    return tuple(
        f"{where}: {key} {shown(value)} asks for code, which is neither loaded nor carried along"
        for key, value in asking.items()
        if not (isinstance(value, (str, bool)) and value in ORDINARY_CODE)
    )


def unknown_keys(config: Mapping[str, Any], where: str, own: tuple[str, ...]) -> tuple[str, ...]:
    """One note that names the keys that nobody here knows; `own` are those that the family reads."""
    told = [
        f"{key[:80]} {shown(value, 40)}"
        for key, value in config.items()
        if key not in READ | LOOKED_AT | CODE | HARMLESS | NEUTRAL.keys()
        and key not in own
        and _says_something(key, value)
    ]
    if not told:
        return ()
    more = f" and {len(told) - 8} more" if len(told) > 8 else ""
    return (
        f"{where}: not known and passed over: {', '.join(told[:8])}{more}; "
        "if one of them changes what the model computes, what is written is another model",
    )


def _says_something(key: str, value: object) -> bool:
    if value is None or value is False or value in ([], {}, ""):
        return False
    plain = type(value) in (int, float) and value in (0, 1)
    return not plain or any(word in key.lower() for word in FUNCTION_WORDS)

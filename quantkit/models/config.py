"""The config that is made from a model: that of a folded Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.models.spec import ModelSpec


def llama_config(spec: ModelSpec, source_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a plain `LlamaForCausalLM` with the dimensions of `spec`, every default spoken out.

    No muP scalar and no `auto_map` remains. LongRoPE keeps its factors.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": list(spec.eos_token_ids) if len(spec.eos_token_ids) > 1 else spec.eos_token_ids[0],
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": source_config.get("initializer_range", 0.02),
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": spec.num_attention_heads,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_key_value_heads": spec.num_key_value_heads,
        "pad_token_id": spec.pad_token_id,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_scaling": rope_scaling(spec),
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "use_cache": True,
        "vocab_size": spec.vocab_size,
    }


def rope_scaling(spec: ModelSpec) -> dict[str, Any] | None:
    """The `rope_scaling` object that every loader of LongRoPE reads; None for plain RoPE.

    The attention factor is there only where it is not the one that loaders derive from the two contexts.
    """
    if spec.rope.kind != "longrope":
        return None
    scaling = {
        "rope_type": "longrope",
        "short_factor": list(spec.rope.short_factor),
        "long_factor": list(spec.rope.long_factor),
        "original_max_position_embeddings": spec.rope.original_max_position_embeddings,
    }
    factor = spec.explicit_attention_factor
    return scaling if factor is None else {**scaling, "attention_factor": factor}

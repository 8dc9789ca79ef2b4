"""The config that quantkit makes: what dense decoders write of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.models.spec import ModelSpec


def decoder_config(spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a dense decoder without its class: every field of `spec`, every default spoken out.

    Of `source`, the config that it was read from, only `initializer_range` is taken: it tells of training alone.
    """
    spread = source.get("initializer_range")
    usual = isinstance(spread, float) and 0 < spread <= 1
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": token_ids_value(spec.eos_token_ids),
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": spread if usual else 0.02,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "mlp_bias": False,
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


def token_ids_value(ids: Sequence[int]) -> int | list[int] | None:
    """How configs say which tokens are meant: a list, one by itself, none as null."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def rope_scaling(spec: ModelSpec) -> dict[str, Any] | None:
    """The `rope_scaling` object that loaders of LongRoPE or dynamic NTK read; None for plain RoPE.

    LongRoPE's attention factor is there only where it is not the one that loaders derive from the two contexts.
    """
    if spec.rope.kind == "dynamic":
        return {"rope_type": "dynamic", "factor": spec.rope.factor}
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

"""A random tiny MiniCPM4 checkpoint with the traps of MiniCPM4-0.5B, written by the `safetensors` package.

The package is a writer independent of quantkit's own; the folder has no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def tiny_config(
    *,
    layers: int = 2,
    hidden: int = 256,
    intermediate: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 300,
    tie: bool = True,
    dtype: str = "bf16",
    dim_model_base: int = 64,
    context: int = 1024,
) -> dict[str, Any]:
    """A config.json like that of MiniCPM4-0.5B: no rope_theta, no pad_token_id, and tying that goes unmentioned."""
    pairs = hidden // heads // 2
    factors = [round(8.0 ** (i / max(1, pairs - 1)), 6) for i in range(pairs)]
    config: dict[str, Any] = {
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
        "bos_token_id": 1,
        "eos_token_id": [2, vocab - 8],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.1,
        "intermediate_size": intermediate,
        "max_position_embeddings": context,
        "model_type": "minicpm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "original_max_position_embeddings": context,
        },
        "torch_dtype": TORCH_DTYPES[dtype],
        "use_cache": True,
        "vocab_size": vocab,
        "scale_emb": 12,
        "dim_model_base": dim_model_base,
        "scale_depth": 1.4,
    }
    if not tie:
        config["tie_word_embeddings"] = False
    return config


def tiny_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor that the config asks for."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        shapes[f"{block}.self_attn.q_proj.weight"] = (queries, hidden)
        shapes[f"{block}.self_attn.k_proj.weight"] = (keys, hidden)
        shapes[f"{block}.self_attn.v_proj.weight"] = (keys, hidden)
        shapes[f"{block}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{block}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{block}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def tiny_tensors(config: Mapping[str, Any], *, seed: int = 0, dtype: str = "bf16") -> dict[str, np.ndarray]:
    """Random weights in the order of the forward pass: norms near 1, matrices with unit gain, small embeddings."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tiny_shapes(config).items():
        values = random.standard_normal(shape)
        if len(shape) == 1:
            values = 1 + 0.1 * values
        elif "embed_tokens" in name:
            values *= 0.1
        else:
            values *= shape[1] ** -0.5
        tensors[name] = values.astype(np.float32).astype(DTYPES[dtype])
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1) -> None:
    """Write `model.safetensors`, or that many shards and their index, with the `safetensors` package."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 2,
    layers: int = 2,
    hidden: int = 256,
    intermediate: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 300,
    tie: bool = True,
    dtype: str = "bf16",
    dim_model_base: int = 64,
    context: int = 1024,
    config_overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random MiniCPM4 into `folder` (created when missing) and return it.

    config_overrides: keys set in config.json after the rest; the weights follow them. None as a value removes the key.
    """
    config = tiny_config(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        vocab=vocab,
        tie=tie,
        dtype=dtype,
        dim_model_base=dim_model_base,
        context=context,
    )
    config.update(config_overrides or {})
    config = {key: value for key, value in config.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tensors(folder, tiny_tensors(config, seed=seed, dtype=dtype), shards=shards)
    return folder

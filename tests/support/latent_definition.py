"""MiniCPM3 token by token and head by head in float64, from the published formulas; and tiny models of its kind.

The formulas import nothing of quantkit, so that a config that quantkit misreads shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Arrays = Mapping[str, np.ndarray]
FACTORS = [
    1.0591234137867171, 1.1241891283591912, 1.2596935748670968, 1.5380380402321725, 2.093982484148734,
    3.1446935121267696, 4.937952647693647, 7.524541999994549, 10.475458000005451, 13.062047352306353,
    14.85530648787323, 15.906017515851266, 16.461961959767827, 16.740306425132907, 16.87581087164081,
    16.940876586213285,
]  # fmt: skip
"""MiniCPM3-4B's."""
PUBLISHED: Mapping[str, Any] = {
    "architectures": ["MiniCPM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPM3Config"},
    "bos_token_id": 1,
    "dim_model_base": 256,
    "eos_token_id": [2, 73440],
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.1,
    "intermediate_size": 6400,
    "kv_lora_rank": 256,
    "max_position_embeddings": 32768,
    "num_attention_heads": 40,
    "num_hidden_layers": 62,
    "num_key_value_heads": 40,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "type": "longrope",
        "long_factor": FACTORS,
        "short_factor": FACTORS,
        "original_max_position_embeddings": 32768,
    },
    "scale_depth": 1.4,
    "scale_emb": 12,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 73448,
}
"""The config of MiniCPM3-4B: no model_type, no rope_theta, no v_head_dim, and tying that goes unmentioned."""
TINY: Mapping[str, Any] = {
    **PUBLISHED,
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 768,
    "max_position_embeddings": 1024,
    "eos_token_id": [2, 2040],
    "rope_scaling": {**PUBLISHED["rope_scaling"], "original_max_position_embeddings": 1024},
}
"""The same heads, ranks and scalars, in fewer and narrower layers; rows are whole blocks of 256."""
SMALL: Mapping[str, Any] = {
    **TINY,
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "eos_token_id": 2,
    "max_position_embeddings": 256,
    "rope_scaling": None,
}
"""Smaller still, with as many channels where one could be taken for the other: both ranks, and all parts of a head."""


def latent_arrays(config: Mapping[str, Any], *, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights by name, in the shapes that the formulas need.

    Small embeddings and a large last norm: what the blocks compute decides the predictions, not the token itself.
    """
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    ranks = (config["q_lora_rank"], config["kv_lora_rank"])
    values = config.get("v_head_dim") or hidden // heads
    block = {
        "input_layernorm": (hidden,),
        "self_attn.q_a_proj": (ranks[0], hidden),
        "self_attn.q_a_layernorm": (ranks[0],),
        "self_attn.q_b_proj": (heads * (nope + rope), ranks[0]),
        "self_attn.kv_a_proj_with_mqa": (ranks[1] + rope, hidden),
        "self_attn.kv_a_layernorm": (ranks[1],),
        "self_attn.kv_b_proj": (heads * (nope + values), ranks[1]),
        "self_attn.o_proj": (hidden, heads * values),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if config.get("tie_word_embeddings") is False:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        drawn = random.standard_normal(shape)
        scale = 0.01 if "embed_tokens" in name else 20.0 if name == "model.norm.weight" else 1.0
        values = 1 + 0.1 * drawn if len(shape) == 1 else drawn if scale < 1 else drawn * shape[-1] ** -0.5
        arrays[name] = (values * scale).astype(dtype)
    return arrays


def write_latent(
    folder: Path,
    config: Mapping[str, Any] = TINY,
    *,
    files: Mapping[str, bytes] | None = None,
    arrays: Arrays | None = None,
    dtype: Any = np.float32,
) -> Path:
    """A random model of `config` in a Hugging Face folder, written by the package safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
    save_file(dict(latent_arrays(config, dtype=dtype) if arrays is None else arrays), folder / "model.safetensors")
    return folder


def latent_logits(
    config: Mapping[str, Any], arrays: Arrays, token_ids: Sequence[int], *, norm_eps: float = 1e-6
) -> np.ndarray:
    """Logits [T, V] in float64 of one pass over all tokens. norm_eps: what the norms of the latents add."""
    weights = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    embedding = weights["model.embed_tokens.weight"]
    head = embedding if config.get("tie_word_embeddings", True) else weights["lm_head.weight"]
    eps, layers = config["rms_norm_eps"], config["num_hidden_layers"]
    branch = config["scale_depth"] / math.sqrt(layers)
    states = [embedding[token] * config["scale_emb"] for token in token_ids]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        inputs = [_norm(state, block["input_layernorm.weight"], eps) for state in states]
        mixed = _attention(config, block, inputs, norm_eps)
        states = [state + branch * out for state, out in zip(states, mixed, strict=True)]
        for index, state in enumerate(states):
            x = _norm(state, block["post_attention_layernorm.weight"], eps)
            gate, up = block["mlp.gate_proj.weight"] @ x, block["mlp.up_proj.weight"] @ x
            states[index] = state + branch * (block["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up))
    divisor = config["hidden_size"] / config["dim_model_base"]
    return np.stack([head @ (_norm(state, weights["model.norm.weight"], eps) / divisor) for state in states])


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt(sum(float(value) ** 2 for value in x) / len(x) + eps) * weight


def _attention(
    config: Mapping[str, Any], block: Arrays, inputs: Sequence[np.ndarray], norm_eps: float
) -> list[np.ndarray]:
    nope, rope, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    heads, values = config["num_attention_heads"], len(block["self_attn.kv_b_proj.weight"])
    values = values // heads - nope
    queries, keys, contents = [], [], []
    for position, x in enumerate(inputs):
        latent = _norm(block["self_attn.q_a_proj.weight"] @ x, block["self_attn.q_a_layernorm.weight"], norm_eps)
        query = block["self_attn.q_b_proj.weight"] @ latent
        compressed = block["self_attn.kv_a_proj_with_mqa.weight"] @ x
        latent = _norm(compressed[:rank], block["self_attn.kv_a_layernorm.weight"], norm_eps)
        expanded = block["self_attn.kv_b_proj.weight"] @ latent
        shared = _turned(config, compressed[rank:], position, len(inputs))
        for head in range(heads):
            own = query[head * (nope + rope) : (head + 1) * (nope + rope)]
            queries.append(np.concatenate([own[:nope], _turned(config, own[nope:], position, len(inputs))]))
            part = expanded[head * (nope + values) : (head + 1) * (nope + values)]
            keys.append(np.concatenate([part[:nope], shared]))
            contents.append(part[nope:])
    outputs = []
    for position in range(len(inputs)):
        parts = []
        for head in range(heads):
            q = queries[position * heads + head]
            scores = [float(q @ keys[seen * heads + head]) / math.sqrt(nope + rope) for seen in range(position + 1)]
            shares = [math.exp(score - max(scores)) for score in scores]
            weighed = [share / sum(shares) * contents[seen * heads + head] for seen, share in enumerate(shares)]
            parts.append(np.sum(weighed, axis=0))
        outputs.append(block["self_attn.o_proj.weight"] @ np.concatenate(parts))
    return outputs


def _turned(config: Mapping[str, Any], x: np.ndarray, position: int, length: int) -> np.ndarray:
    """Each pair (i, i + D/2) turned by its angle; nothing is scaled, as in every context up to the original one."""
    scaling = config.get("rope_scaling") or {}
    half, theta = len(x) // 2, config.get("rope_theta") or 10000.0
    original = scaling.get("original_max_position_embeddings", 0)
    stretch = scaling.get("long_factor" if length > original else "short_factor", [1.0] * half)
    turned = np.empty(len(x))
    for i in range(half):
        angle = position / stretch[i] * theta ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned

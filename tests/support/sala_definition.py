"""MiniCPM-SALA token by token and head by head, in plain loops from the formulas, in float64; and a tiny config of it.

Nothing of it is quantkit's but the sparse attention's own definition (`sparse_definition.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.support.sparse_definition import Definition

SALA_CONFIG: Mapping[str, Any] = {
    "architectures": ["MiniCPMSALAForCausalLM"],
    "model_type": "minicpm_sala",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 89],
    "pad_token_id": 2,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "mup_denominator": 32,
    "mixer_types": ["minicpm4", "lightning-attn", "lightning-attn", "minicpm4"],
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_nh": 4,
    "lightning_nkv": 4,
    "lightning_head_dim": 16,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "qk_norm": True,
    "use_output_gate": True,
    "use_output_norm": True,
    "sparse_config": {
        "kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 3,
        "dense_len": 40, "use_nope": False,
    },
}  # fmt: skip
"""Two layers of each kind."""


def slopes(heads: int) -> list[float]:
    """ALiBi's, as its paper gives them: a geometric sequence that begins with 2^(-8 / n) and has this ratio."""
    exponent = math.log2(heads)
    if exponent.is_integer():
        return [2.0 ** (-8 * (number + 1) / heads) for number in range(heads)]
    lower = 2 ** math.floor(exponent)
    return slopes(lower) + slopes(2 * lower)[0::2][: heads - lower]


def lightning(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Every pair of tokens by itself, without a state: (T, H * D) of q, k and v (H, T, D)."""
    heads, tokens, channels = q.shape
    out = np.zeros((tokens, heads, channels))
    for head, slope in enumerate(slopes(heads)):
        for t in range(tokens):
            for s in range(t + 1):
                score = sum(float(q[head, t, c]) * float(k[head, s, c]) for c in range(channels))
                out[t, head] += math.exp(-slope * (t - s)) * score / math.sqrt(channels) * v[head, s]
    return out.reshape(tokens, heads * channels)


def logits(
    config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], ids: Sequence[int], *, sparsely: bool
) -> np.ndarray:
    """Of one prompt, (T, V)."""
    weights = {name: array.astype(np.float64) for name, array in arrays.items()}
    scale = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    x = weights["model.embed_tokens.weight"][list(ids)] * config["scale_emb"]
    for layer, mixer in enumerate(config["mixer_types"]):
        own = {name.split(f".{layer}.", 1)[1]: w for name, w in weights.items() if f"layers.{layer}." in name}
        h = normed(x, own["input_layernorm.weight"], config)
        mix = linear if mixer == "lightning-attn" else softmax
        x = x + scale * mix(config, own, h, sparsely) @ own["self_attn.o_proj.weight"].T
        h = normed(x, own["post_attention_layernorm.weight"], config)
        gate, up = h @ own["mlp.gate_proj.weight"].T, h @ own["mlp.up_proj.weight"].T
        x = x + scale * (gate / (1 + np.exp(-gate)) * up) @ own["mlp.down_proj.weight"].T
    last = normed(x, weights["model.norm.weight"], config) * config["dim_model_base"] / config["hidden_size"]
    found: np.ndarray = last @ weights["lm_head.weight"].T
    return found


def softmax(config: Mapping[str, Any], own: Mapping[str, np.ndarray], h: np.ndarray, sparsely: bool) -> np.ndarray:
    """A layer of the first kind up to its output projection."""
    q, k, v = (split(h @ own[f"self_attn.{name}_proj.weight"].T, config["head_dim"]) for name in "qkv")
    numbers = dict(config["sparse_config"])
    numbers.pop("use_nope")
    if not sparsely:
        numbers["dense_len"] = 1 << 40
    mixed, _ = Definition(numbers, "minicpm4.1").outputs(q, k, v, [len(h)])
    return mixed / (1 + np.exp(-(h @ own["self_attn.o_gate.weight"].T)))


def linear(config: Mapping[str, Any], own: Mapping[str, np.ndarray], h: np.ndarray, sparsely: bool) -> np.ndarray:
    """A layer of the second kind up to its output projection."""
    q, k, v = (split(h @ own[f"self_attn.{name}_proj.weight"].T, config["lightning_head_dim"]) for name in "qkv")
    q = turned(normed(q, own["self_attn.q_norm.weight"], config), config["rope_theta"])
    k = turned(normed(k, own["self_attn.k_norm.weight"], config), config["rope_theta"])
    mixed = normed(lightning(q, k, v), own["self_attn.o_norm.weight"], config)
    gated: np.ndarray = mixed / (1 + np.exp(-(h @ own["self_attn.z_proj.weight"].T)))
    return gated


def normed(x: np.ndarray, weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """RMSNorm over the last axis."""
    root = np.sqrt((x * x).mean(axis=-1, keepdims=True) + config["rms_norm_eps"])
    result: np.ndarray = x / root * weight
    return result


def split(x: np.ndarray, channels: int) -> np.ndarray:
    """(T, H * D) to (H, T, D)."""
    return x.reshape(len(x), -1, channels).swapaxes(0, 1)


def turned(x: np.ndarray, theta: float) -> np.ndarray:
    """RoPE: channels i and i + D / 2 of the token at t as one complex number, times exp(1j t theta^(-2 i / D))."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate((pairs.real, pairs.imag), axis=-1)

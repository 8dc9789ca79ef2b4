"""MiniCPM as its authors publish it, token by token in float64: a third reading of config.json, for tests alone.

Written from the published formulas and config defaults (OpenBMB `configuration_minicpm.py`, `modeling_minicpm.py`),
with loops where they have sums. It imports nothing of quantkit, so that a config that quantkit misreads shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


def minicpm_logits(config: Mapping[str, Any], arrays: Arrays, token_ids: Sequence[int]) -> np.ndarray:
    """Logits [T, V] in float64 of one pass over all tokens, from config.json as it stands and weights by name."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    weights = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
    embedding = weights["model.embed_tokens.weight"]
    head = embedding if config.get("tie_word_embeddings", True) else weights["lm_head.weight"]
    scale_depth, scale_emb = config.get("scale_depth", 1), config.get("scale_emb", 1)
    base, eps = config.get("dim_model_base", 1), config.get("rms_norm_eps", 1e-6)

    states = [embedding[token] * scale_emb for token in token_ids]
    for layer in range(layers):
        block = {
            name.removeprefix(f"model.layers.{layer}."): values
            for name, values in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = [_norm(state, block["input_layernorm.weight"], eps) for state in states]
        mixed = _attention(config, block, normed)
        states = [state + out * (scale_depth / math.sqrt(layers)) for state, out in zip(states, mixed, strict=True)]
        for index, state in enumerate(states):
            x = _norm(state, block["post_attention_layernorm.weight"], eps)
            gate, up = block["mlp.gate_proj.weight"] @ x, block["mlp.up_proj.weight"] @ x
            out = block["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            states[index] = state + out * (scale_depth / math.sqrt(layers))
    last = [_norm(state, weights["model.norm.weight"], eps) / (hidden / base) for state in states]
    return np.stack([head @ state for state in last])


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt(sum(float(value) ** 2 for value in x) / len(x) + eps) * weight


def _attention(config: Mapping[str, Any], block: Arrays, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    length = len(inputs)
    queries, keys, values = (
        [(block[f"self_attn.{name}_proj.weight"] @ x).reshape(-1, size) for x in inputs] for name in "qkv"
    )
    queries, keys = (
        [[_turned(config, head, position, length) for head in token] for position, token in enumerate(tokens)]
        for tokens in (queries, keys)
    )
    outputs = []
    for position in range(length):
        parts = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = [queries[position][head] @ keys[seen][group] / math.sqrt(size) for seen in range(position + 1)]
            shares = [math.exp(score - max(scores)) for score in scores]
            weighed = [share / sum(shares) * values[seen][group] for seen, share in enumerate(shares)]
            parts.append(np.sum(weighed, axis=0))
        outputs.append(block["self_attn.o_proj.weight"] @ np.concatenate(parts))
    return outputs


def _turned(config: Mapping[str, Any], x: np.ndarray, position: int, length: int) -> np.ndarray:
    """A head's channels, each pair (i, i + D/2) turned by its angle, times LongRoPE's scaling factor."""
    theta = config.get("rope_theta") or 10000.0
    longest = config.get("max_position_embeddings", 2048)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    size, half = len(x), len(x) // 2
    stretch, amplitude = [1.0] * half, 1.0
    if kind == "linear":
        stretch = [scaling["factor"]] * half
    elif kind == "dynamic" and length > longest:
        theta *= (scaling["factor"] * length / longest - (scaling["factor"] - 1)) ** (size / (size - 2))
    elif kind in ("longrope", "su"):
        original = scaling["original_max_position_embeddings"]
        stretch = scaling["long_factor"] if length > original else scaling["short_factor"]
        if longest > original:
            amplitude = math.sqrt(1 + math.log(longest / original) / math.log(original))
    turned = np.empty(size)
    for i in range(half):
        angle = position / stretch[i] * theta ** (-2 * i / size)
        cos, sin = math.cos(angle) * amplitude, math.sin(angle) * amplitude
        turned[i] = x[i] * cos - x[i + half] * sin
        turned[i + half] = x[i + half] * cos + x[i] * sin
    return turned

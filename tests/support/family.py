"""Tiny models of the family's members: each one's own config, scaled down in what costs time, with all that is odd.

Kept: the class and `model_type` as published (or missing), what the config leaves unsaid, head_dim where it is not
hidden / heads, the ratio of heads to key-value heads, LongRoPE lists of half a head_dim, contexts, bases, end tokens,
hidden over dim_model_base, and of every size whether 8, 16, 32, 64, 128 or 256 divides it: an odd vocabulary stays odd.
(MiniCPM-2B's 2,304 is the exception: 36 heads that 256 divides are the true size. So 128 divides it, not 256.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_checkpoint import longrope_factors
from quantkit.models.family.multimodal import is_multimodal
from tests.support.tiny import tiny_tensors, write_tensors

Config = dict[str, Any]

MINICPM: Config = {"architectures": ["MiniCPMForCausalLM"], "bos_token_id": 1, "hidden_act": "silu", "scale_emb": 12}
MINICPM |= {"scale_depth": 1.4, "initializer_range": 0.1, "torch_dtype": "bfloat16", "use_cache": True}
LLAMA: Config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1, "hidden_act": "silu"}
LLAMA |= {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SIZES += ("vocab_size",)
END = 1088
"""Where <|im_end|> is, eight before the end of a vocabulary of 1,096, as 73,440 is of 73,448."""


def longrope(pairs: int, original: int, kind: str = "rope_type", name: str = "longrope", **more: Any) -> Config:
    """A `rope_scaling` with the same factors for short and long texts, as in all published members."""
    factors = longrope_factors(pairs, 50.0 if pairs == 32 else 31.0)
    return {kind: name, "short_factor": factors, "long_factor": factors} | {
        "original_max_position_embeddings": original,
        **more,
    }


def sizes(*values: int) -> Config:
    """The keys of a model's dimensions, in the order of `SIZES`."""
    return dict(zip(SIZES, values, strict=True))


_8B: Config = {
    **MINICPM,
    **sizes(512, 512, 2, 4, 2, 1096),
    "model_type": "minicpm",
    "dim_model_base": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "mup_denominator": 32,
    "eos_token_id": [2, END],
    "pad_token_id": 2,
}
_2B: Config = {**MINICPM, "dim_model_base": 128, "rms_norm_eps": 1e-5, "eos_token_id": 2}
_TOWERS: Config = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
    "drop_vision_last_layer": False,
    "image_size": 448,
    "patch_size": 14,
    "query_num": 64,
}

CONFIGS: Mapping[str, Config] = {
    "MiniCPM4-0.5B": {
        **MINICPM,
        **sizes(256, 512, 2, 4, 2, 1096),
        "model_type": "minicpm",
        "dim_model_base": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_scaling": longrope(32, 32768),
        "eos_token_id": [2, END],
    },
    "MiniCPM4-8B": {**_8B, "max_position_embeddings": 32768, "rope_scaling": longrope(64, 32768)},
    "MiniCPM4.1-8B": {**_8B, "max_position_embeddings": 65536, "rope_scaling": longrope(64, 65536)},
    "MiniCPM4-3B": {
        **_TOWERS,
        **sizes(256, 512, 2, 4, 2, 1096),
        "head_dim": 128,
        "attention_bias": False,
        "mlp_bias": False,
        "batch_vision_input": True,
        "bos_token_id": 1,
        "eos_token_id": [2, END],
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": longrope(64, 32786, factor=1.0),
        "rope_theta": 10000.0,
        "slice_config": {"max_slice_nums": 9, "model_type": "minicpmv", "patch_size": 14},
        "slice_mode": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_image_id": True,
        "version": 4.0,
        "vision_batch_size": 16,
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "BitCPM4-1B": {
        **MINICPM,
        **sizes(768, 768, 2, 12, 4, 1096),
        "dim_model_base": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_scaling": longrope(32, 32768, kind="type", name="su"),
        "eos_token_id": 2,
    },
    "BitCPM-CANN-1B": {
        **LLAMA,
        **sizes(512, 512, 2, 4, 2, 1096),
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "rope_scaling": longrope(64, 32768, factor=1.0),
        "eos_token_id": [2, END],
    },
    "MiniCPM5-1B": {
        **LLAMA,
        **sizes(768, 768, 2, 8, 2, 1536),
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "rope_theta": 5000000.0,
        "bos_token_id": 0,
        "eos_token_id": [1, 1049],
        "pad_token_id": 1,
    },
    "MiniCPM5-2B": {
        **LLAMA,
        **sizes(512, 768, 2, 4, 2, 1536),
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "rope_theta": 5000000.0,
        "bos_token_id": 0,
        "eos_token_id": [1, 1049],
        "pad_token_id": 1,
    },
    "MiniCPM-1B": {
        **MINICPM,
        **sizes(768, 768, 2, 12, 4, 1120),
        "dim_model_base": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "rope_scaling": None,
        "eos_token_id": 2,
    },
    "MiniCPM-2B": {**_2B, **sizes(1152, 384, 2, 36, 36, 1153), "max_position_embeddings": 4096, "rope_scaling": None},
    "MiniCPM-2B-128k": {
        **_2B,
        **sizes(1152, 384, 1, 36, 36, 1160),
        "max_position_embeddings": 65536,
        "max_length": 131072,
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "Llama-3-8B": {
        **LLAMA,
        **_TOWERS,
        **sizes(1024, 256, 2, 8, 2, 1280),
        "mm_use_im_start_end": True,
        "slice_mode": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 1279 - 7,
        "eos_token_id": 1279 - 6,
    },
}
"""By the name in `quantkit.models.family.members`."""

TOWERS = {
    f"{name}.weight": np.ones((2, 4), np.float32) for name in ("vpm.encoder.layers.0.mlp.fc1", "resampler.kv_proj")
}


def write_member(folder: Path, name: str, *, seed: int = 0, **keys: Any) -> Path:
    """Write the tiny model `name` into the new folder `folder`; `keys` go into its config, None removes one.

    Its weights are random; those of the BitCPMs have three values a row.
    """
    config = {key: value for key, value in (CONFIGS[name] | keys).items() if value is not None or key not in keys}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = tiny_tensors(config, seed=seed)
    if name.startswith("BitCPM"):
        tensors = {key: ternary(tensor) if ".layers." in key else tensor for key, tensor in tensors.items()}
    if is_multimodal(config):
        tensors = {f"llm.{key}": tensor for key, tensor in tensors.items()} | TOWERS
    write_tensors(folder, tensors)
    return folder


def ternary(tensor: np.ndarray) -> np.ndarray:
    """A matrix of -s, 0 and s with one s for each row; anything else as it is."""
    if tensor.ndim < 2:
        return tensor
    values = tensor.astype(np.float32)
    scale = np.abs(values).mean(axis=1, keepdims=True).astype(tensor.dtype).astype(np.float32)
    codes: np.ndarray = np.clip(np.rint(values / scale), -1, 1)
    return (codes * scale).astype(tensor.dtype)

"""The metadata that quantkit writes into a GGUF file: the architecture's keys, and two of its own.

`quantkit.config` is the source's config.json, because the other keys round its numbers to float32.
`quantkit.quantization` says which tensors hold which `AffineGroups`, because blocks do not tell group sizes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from quantkit.errors import UnsupportedModel
from quantkit.exporters._hf_config import native_config
from quantkit.exporters.gguf.card.entries import card_entries
from quantkit.exporters.gguf.container.header import entry
from quantkit.exporters.gguf.container.types import ValueType
from quantkit.exporters.gguf.families.latent import latent_keys
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.scheme import Scheme

QUANTIZATION_VERSION = 2
CONFIG_KEY, QUANTIZATION_KEY = "quantkit.config", "quantkit.quantization"

ARCHITECTURES = {"minicpm": "MiniCPMForCausalLM", "llama": "LlamaForCausalLM", "minicpm3": "MiniCPM3ForCausalLM"}
"""Values of general.architecture, and the classes that configs name."""

SCALE_KEYS = ("embedding_scale", "residual_scale", "logit_scale")
"""MiniCPM's three scalars, after the architecture's name."""


def model_entries(checkpoint: Checkpoint, file_type: int) -> list[bytes]:
    """general.* and the architecture's keys; `file_type` is llama.cpp's number for the mixture of types.

    Raises:
        UnsupportedModel: an architecture that llama.cpp does not have under that name.
        UnsupportedSpec: see `latent_keys`.
    """
    spec = checkpoint.spec
    arch = spec.architecture
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{checkpoint.path}: gguf has no architecture {arch!r}", hint="fold it into a Llama: --arch llama"
        )
    weights = sum(math.prod(slot.shape) for slot in spec.slots())
    name = f"{ARCHITECTURES[arch].removesuffix('ForCausalLM')} {weights / 1e6:.0f}M"
    integers = {
        "block_count": spec.num_hidden_layers,
        "context_length": spec.max_position_embeddings,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_attention_heads,
        "attention.head_count_kv": spec.num_key_value_heads,
        "rope.dimension_count": spec.rotary_dim,
        "vocab_size": spec.vocab_size,
    }
    if spec.latent is not None:
        integers |= latent_keys(spec)
    else:
        integers |= {"attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim}
    floats = {"attention.layer_norm_rms_epsilon": spec.rms_norm_eps, "rope.freq_base": spec.rope.theta}
    if arch == "minicpm":
        floats |= dict(zip(SCALE_KEYS, (spec.scale_emb, spec.residual_scale, spec.logit_divisor), strict=True))
    entries = [
        entry("general.architecture", ValueType.STRING, arch),
        entry("general.type", ValueType.STRING, "model"),
        *card_entries(checkpoint, name, weights),
        entry("general.file_type", ValueType.UINT32, file_type),
        entry("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
    ]
    if spec.rope.kind == "longrope":
        entries.append(entry(f"{arch}.rope.scaling.type", ValueType.STRING, "longrope"))
        integers["rope.scaling.original_context_length"] = spec.rope.original_max_position_embeddings
        floats["rope.scaling.attn_factor"] = spec.rope.attention_factor
    entries += [entry(f"{arch}.{key}", ValueType.UINT32, value) for key, value in integers.items()]
    entries += [entry(f"{arch}.{key}", ValueType.FLOAT32, value) for key, value in floats.items()]
    entries.append(entry(CONFIG_KEY, ValueType.STRING, _canonical(native_config(checkpoint))))
    return entries


def quantization_entries(schemes: Mapping[str, Scheme]) -> list[bytes]:
    """`quantkit.quantization` for tensors (GGUF's names) whose codes were carried over."""
    if not schemes:
        return []
    groups: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    value = {"groups": [{"spec": scheme.to_json(), "tensors": names} for scheme, names in groups.items()]}
    return [entry(QUANTIZATION_KEY, ValueType.STRING, _canonical(value))]


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

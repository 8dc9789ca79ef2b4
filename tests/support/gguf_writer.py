"""Tiny GGUF files, written by the independent package `gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.models.checkpoint import Checkpoint

VOCABULARY = 320
TOKENS = [1, *(int(i) for i in (np.arange(59) * 31 + 7) % VOCABULARY)]
SPECIAL = 319
"""A control token with the text `<|special|>`."""

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    *,
    templates: Mapping[str | None, str] | None = None,
    raw: Mapping[str, tuple[str, np.ndarray]] | None = None,
) -> Path:
    """A float32 GGUF of a MiniCPM with a byte vocabulary, by gguf-py; chat templates by name, None = the default.

    raw: by their names in the file, tensors that are written as a type of ggml, with their blocks, uint8 (rows, bytes).
    """
    gguf = pytest.importorskip("gguf", reason="the files are written by the gguf package")
    spec = checkpoint.spec
    writer = gguf.GGUFWriter(path, "minicpm")
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_attention_heads)
    writer.add_head_count_kv(spec.num_key_value_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_embedding_scale(spec.scale_emb)
    writer.add_residual_scale(spec.residual_scale)
    writer.add_logit_scale(spec.logit_divisor)
    add_vocabulary(writer, spec.vocab_size)
    for name, template in (templates or {}).items():
        writer.add_string("tokenizer.chat_template" + (f".{name}" if name else ""), template)
    if spec.rope.kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(spec.rope.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(spec.rope.attention_factor)
        writer.add_tensor("rope_factors_short.weight", np.array(spec.rope.short_factor, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(spec.rope.long_factor, np.float32))
    heads = {"q_proj": spec.num_attention_heads, "k_proj": spec.num_key_value_heads}
    for name, view in checkpoint.weights.items():
        if gguf_name(name) in (raw or {}):
            kind, data = (raw or {})[gguf_name(name)]
            writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType[kind])
            continue
        values: Any = view.read()
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbours, the family halves of a head
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    ends = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in ends:
        return ends[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.weight"


def add_vocabulary(writer: Any, size: int) -> None:
    control, byte, normal, unknown = 3, 6, 1, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    kinds = [unknown, control, control, *[byte] * 256]
    tokens += [f"word{i}" for i in range(size - len(tokens) - 1)] + ["<|special|>"]
    kinds += [normal] * (size - len(kinds) - 1) + [control]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)

"""A block with latent attention as a torch module; see `minicpm3.py` for the formulas."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from quantkit.models.spec import ModelSpec
from quantkit.models.torch_model import Attention, Block, RMSNorm, rotate


class LatentAttention(Attention):
    """`Attention` whose queries, keys and values are made of latents; as many heads of keys as of queries."""

    def __init__(self, spec: ModelSpec) -> None:
        nn.Module.__init__(self)
        latent, heads, hidden = spec.latent, spec.num_attention_heads, spec.hidden_size
        assert latent is not None
        self.latent = latent
        self.head_dim = spec.head_dim
        self.q_a_proj = nn.Linear(hidden, latent.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(latent.q_lora_rank, latent.norm_eps)
        self.q_b_proj = nn.Linear(latent.q_lora_rank, heads * latent.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent.kv_lora_rank + latent.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(latent.kv_lora_rank, latent.norm_eps)
        self.kv_b_proj = nn.Linear(latent.kv_lora_rank, heads * latent.kv_head_dim, bias=False)
        self.o_proj = nn.Linear(heads * latent.v_head_dim, hidden, bias=False)

    def query_latent(self, x: Tensor) -> Tensor:
        """The input of q_b_proj [..., q_lora_rank] for normalized x [..., hidden]."""
        return cast(Tensor, self.q_a_layernorm(self.q_a_proj(x)))

    def key_latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input of kv_b_proj [..., kv_lora_rank], and the part of keys that is rotated [..., qk_rope_head_dim]."""
        rank, rope = self.latent.kv_lora_rank, self.latent.qk_rope_head_dim
        latent, turning = self.kv_a_proj_with_mqa(x).split([rank, rope], dim=-1)
        return self.kv_a_layernorm(latent), turning

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Attention.heads`."""
        own, (batch, time, _) = self.latent, x.shape
        latent, turning = self.key_latent(x)
        q = self.q_b_proj(self.query_latent(x)).view(batch, time, -1, own.qk_head_dim).transpose(1, 2)
        kv = self.kv_b_proj(latent).view(batch, time, -1, own.kv_head_dim).transpose(1, 2)
        q_nope, q_rope = q.split([own.qk_nope_head_dim, own.qk_rope_head_dim], dim=-1)
        k_nope, v = kv.split([own.qk_nope_head_dim, own.v_head_dim], dim=-1)
        k_rope = rotate(turning[:, None], cos, sin).expand(-1, q.shape[1], -1, -1)
        return torch.cat((q_nope, rotate(q_rope, cos, sin)), -1), torch.cat((k_nope, k_rope), -1), v


class LatentBlock(Block):
    """`Block` with that attention, and its groups of layers: q_a and kv_a, q_b, kv_b, o, gate and up, down."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, LatentAttention)

    def reads(self, group: int, x: Tensor, before: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """See `Block.reads`. Up to o nothing is added to x, so what attention reads can be made of it again."""
        attention = cast(LatentAttention, self.self_attn)
        if group == 1:
            return attention.query_latent(before)
        if group == 2:
            return attention.key_latent(self.input_layernorm(x))[0]
        if group == 3:
            return attention.mix(self.input_layernorm(x)[None], *rotary, None)[0]
        return super().reads(group if group == 0 else group - 2, x, before, rotary)

"""The family as a torch module: calibration, training and golden recording run on it.

Parameter names are the Hugging Face tensor names, so `state_dict()` is a checkpoint. One `Block` can stand alone:
calibration loads one block at a time (`Block(spec)` + `load_state_dict`), never the whole model.

Numerics follow OpenBMB's `modeling_minicpm.py`: RMSNorm and softmax in float32, half-split ("NeoX") rotary
embedding in float32, LongRoPE frequencies as (position * 1/factor) * inv_freq in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantkit.models.spec import ModelSpec, Role, architecture


@dataclass(slots=True)
class KeysAndValues:
    """What a block's attention has seen: keys and values [batch, kv_heads, room, channels], filled up to `length`."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of further positions [batch, kv_heads, time, channels], in place; views of all so far."""
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


@dataclass(slots=True)
class Cache:
    """Keys and values of every block, with room for as many positions as were asked for."""

    blocks: list[KeysAndValues]

    @property
    def length(self) -> int:
        """Number of positions held."""
        return self.blocks[0].length


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps), computed in float32, cast back, then times weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., size] over its last axis; same shape and dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def rotary_tables(spec: ModelSpec, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [stop - start, rotary_dim] in float32 for positions start..stop-1 of a context of `stop` tokens."""
    half = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32, device=device)
    inv_freq = 1.0 / spec.rope.base(stop, spec.rotary_dim) ** (half / spec.rotary_dim)
    position = torch.arange(start, stop, dtype=torch.float32, device=device)[:, None]
    factors = spec.rope.factors(stop)
    if factors:
        position = position * (1.0 / torch.tensor(factors, dtype=torch.float32).to(device))
    angle = position * inv_freq
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * spec.rope.attention_factor, angle.sin() * spec.rope.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of x [batch, heads, time, head_dim] in float32, cast back to x's dtype."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention, causal, scores scaled by head_dim^-0.5."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)
        self.head_dim = spec.head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeysAndValues | None) -> Tensor:
        """Attend from x [batch, time, hidden] to `past` and itself: the output [batch, time, hidden].

        Args:
            x: normalized residual states.
            cos: float32 [time, rotary_dim] of these positions; `sin` likewise.
            sin: see `cos`.
            past: keys and values of earlier positions, to which those of x are added; None = there are none.
        """
        mixed: Tensor = self.o_proj(self.mix(x, cos, sin, past))
        return mixed

    def mix(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeysAndValues | None) -> Tensor:
        """As `forward`, but with the input of o_proj [batch, time, heads * channels] in place of its output."""
        batch, time, _ = x.shape
        q, k, v = self.heads(x, cos, sin)
        if past is not None:
            k, v = past.extended(k, v)
        if time == 1:  # heads that share keys are rows of one product
            q = q.reshape(batch, k.shape[1], -1, self.head_dim)
            mixed = functional.scaled_dot_product_attention(q, k, v)
            return mixed.reshape(batch, 1, -1)
        mask = None
        if k.shape[2] > time:
            mask = torch.ones(time, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - time)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )
        return mixed.transpose(1, 2).reshape(batch, time, -1)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [batch, heads, time, channels], the first two turned."""
        batch, time, _ = x.shape
        q, k, v = (
            proj(x).view(batch, time, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Output [..., hidden] for normalized x [..., hidden]."""
        hidden: Tensor = self.down_proj(self.gated(x))
        return hidden

    def gated(self, x: Tensor) -> Tensor:
        """The input of down_proj [..., intermediate] for normalized x [..., hidden]."""
        gated: Tensor = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return gated


class Block(nn.Module):
    """One block of a dense decoder: x + s * attention(norm(x)), then x + s * mlp(norm(x)), s = `residual_scale`.

    Blocks of other architectures have the same methods, for their own groups of layers and kind of `attention`.
    """

    def __init__(self, spec: ModelSpec, attention: Callable[[ModelSpec], Attention] = Attention) -> None:
        super().__init__()
        self.spec = spec
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.self_attn = attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.mlp = MLP(spec)
        self.residual_scale = spec.residual_scale

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: KeysAndValues | None = None) -> Tensor:
        """Residual states x [batch, time, hidden] after this block; see `Attention`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past) * self.residual_scale
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.residual_scale
        return after

    def reads(self, group: int, x: Tensor, before: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """What the layers of a group read, float32 [time, columns], for one sequence.

        Args:
            group: its number in `ModelSpec.groups`.
            x: residual states [time, hidden] after the groups before it.
            before: what the group before it reads; anything for the first.
            rotary: cos and sin of these positions.
        """
        if group == 0:
            read = self.input_layernorm(x)
        elif group == 1:
            read = self.self_attn.mix(before[None], *rotary, None)[0]
        elif group == 2:
            read = self.post_attention_layernorm(x)
        else:
            read = self.mlp.gated(before)
        return cast(Tensor, read)

    def weight(self, role: Role) -> nn.Parameter:
        """The parameter that `role` names."""
        return self.get_parameter(self.spec.layer_names[role])

    def layer(self, role: Role) -> nn.Module:
        """The module whose weight is `weight(role)`."""
        return self.get_submodule(self.spec.layer_names[role].removesuffix(".weight"))


class Decoder(nn.Module):
    """Embedding, blocks and final norm; named `model` in a checkpoint."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        family = architecture(spec.architecture)
        self.layers = nn.ModuleList(family.block(spec) for _ in range(spec.num_hidden_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)


class MiniCPM(nn.Module):
    """The whole model: token ids [batch, time] to float32 logits [batch, time, vocab]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Decoder(spec)
        if not spec.tie_word_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position."""
        return self.head(self.states(ids))

    def states(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Residual states [batch, time, hidden] behind the last block; with a `cache`, `ids` continue it."""
        past = cache.length if cache is not None else 0
        cos, sin = rotary_tables(self.spec, past, past + ids.shape[1], ids.device)
        x: Tensor = self.model.embed_tokens(ids) * self.spec.scale_emb
        for index, block in enumerate(self.model.layers):
            x = block(x, cos, sin, cache.blocks[index] if cache is not None else None)
        return x

    def cache(self, batch: int, room: int) -> Cache:
        """An empty cache for `room` positions of `batch` sequences, in the dtype and on the device of the weights."""
        like, spec = self.model.embed_tokens.weight, self.spec
        keys = (batch, spec.num_key_value_heads, room, spec.head_dim)
        values = keys if spec.latent is None else (*keys[:3], spec.latent.v_head_dim)
        return Cache([KeysAndValues(like.new_empty(keys), like.new_empty(values)) for _ in self.model.layers])

    def head(self, x: Tensor) -> Tensor:
        """Float32 logits of residual states x [..., hidden]."""
        weight = self.model.embed_tokens.weight if self.spec.tie_word_embeddings else self.lm_head.weight
        return functional.linear(self.model.norm(x) / self.spec.logit_divisor, weight).float()

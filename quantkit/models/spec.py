"""The MiniCPM family: `config.json` in, `ModelSpec` out, with every default materialised.

MiniCPM4 differs from Llama by three scalars: embeddings times `scale_emb`, every residual branch times
`scale_depth / sqrt(num_hidden_layers)`, and hidden states divided by `hidden_size / dim_model_base` before the
head. The real MiniCPM4-0.5B config omits `tie_word_embeddings` (the family's default is True, generic loaders
assume False) and `rope_theta` (default 10000, some loaders assume 1e6); this file is the one place that knows.

Stock Llama configs are read as well (MiniCPM5 and two BitCPM sizes are Llama): all three scalars are 1.
Sources: OpenBMB `configuration_minicpm.py` (defaults), transformers `LlamaConfig` (defaults).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.config_reader import ConfigReader

MAX_DIMENSION = 1 << 24
MAX_LAYERS = 1024


class Role(str, Enum):
    """What a tensor does in the model; recipes and exporters speak of roles, never of name patterns."""

    EMBED = "embed"
    ATTN_NORM = "attn_norm"
    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's own letter for the attention output projection
    MLP_NORM = "mlp_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    FINAL_NORM = "final_norm"
    LM_HEAD = "lm_head"


LAYER_GROUPS = ((Role.Q, Role.K, Role.V), (Role.O,), (Role.GATE, Role.UP), (Role.DOWN,))
"""Linear layers of a block in computing order, those that read the same input together. Engines that fuse layers make
one matrix of each group.
"""
LINEAR_ROLES = tuple(role for group in LAYER_GROUPS for role in group)
WEIGHED_ROLES = (Role.Q, Role.K, Role.V, Role.O, Role.DOWN)
"""Layers whose outputs are weighed by what they do to the predictions (`quantkit.calibration.fisher` says why not
all).
"""
NORM_ROLES = (Role.ATTN_NORM, Role.MLP_NORM, Role.FINAL_NORM)

LAYER_NAMES = {
    Role.ATTN_NORM: "input_layernorm.weight",
    Role.Q: "self_attn.q_proj.weight",
    Role.K: "self_attn.k_proj.weight",
    Role.V: "self_attn.v_proj.weight",
    Role.O: "self_attn.o_proj.weight",
    Role.MLP_NORM: "post_attention_layernorm.weight",
    Role.GATE: "mlp.gate_proj.weight",
    Role.UP: "mlp.up_proj.weight",
    Role.DOWN: "mlp.down_proj.weight",
}


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One tensor that the model must have: its Hugging Face name, role, layer (None outside blocks) and shape."""

    name: str
    role: Role
    layer: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding: base frequency, and LongRoPE factors (one per pair of channels) where the model has them.

    `attention_factor` multiplies cos and sin; it is sqrt(1 + ln(max/orig)/ln(orig)) when the context was
    extended (max > orig) and 1 otherwise (Microsoft LongRoPE; transformers `_compute_longrope_parameters`).
    """

    theta: float
    kind: str  # "default" or "longrope"
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0

    def factors(self, context_length: int) -> tuple[float, ...]:
        """LongRoPE factors for a context of `context_length` tokens; empty for plain RoPE."""
        return self.long_factor if context_length > self.original_max_position_embeddings else self.short_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A dense MiniCPM or Llama decoder, completely specified.

    The forward pass (`x` residual stream, `s` = `residual_scale`):
        x = embed[ids] * scale_emb
        x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      per block
        logits = lm_head(rms_norm(x) / logit_divisor)
    """

    architecture: str  # "minicpm" or "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    scale_emb: float
    residual_scale: float
    logit_divisor: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    def slots(self) -> tuple[TensorSlot, ...]:
        """Every tensor of the model, in the order of the forward pass."""
        slots = [TensorSlot("model.embed_tokens.weight", Role.EMBED, None, (self.vocab_size, self.hidden_size))]
        for layer in range(self.num_hidden_layers):
            slots += [
                TensorSlot(f"model.layers.{layer}.{name}", role, layer, self.layer_shape(role))
                for role, name in LAYER_NAMES.items()
            ]
        slots.append(TensorSlot("model.norm.weight", Role.FINAL_NORM, None, (self.hidden_size,)))
        if not self.tie_word_embeddings:
            slots.append(TensorSlot("lm_head.weight", Role.LM_HEAD, None, (self.vocab_size, self.hidden_size)))
        return tuple(slots)

    def layer_shape(self, role: Role) -> tuple[int, ...]:
        """Shape [out, in] of a block's tensor, [hidden] for its norms."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            Role.Q: (queries, self.hidden_size),
            Role.K: (keys, self.hidden_size),
            Role.V: (keys, self.hidden_size),
            Role.O: (self.hidden_size, queries),
            Role.GATE: (self.intermediate_size, self.hidden_size),
            Role.UP: (self.intermediate_size, self.hidden_size),
            Role.DOWN: (self.hidden_size, self.intermediate_size),
        }.get(role, (self.hidden_size,))

    def folded(self) -> ModelSpec:
        """The plain Llama that computes the same function once `fold_factor` has been multiplied into the weights.

        Its residual stream is this one's times `_stream_factor`, which RMSNorm does not notice when its epsilon grows
        by the square.
        """
        return replace(
            self,
            architecture="llama",
            scale_emb=1.0,
            residual_scale=1.0,
            logit_divisor=1.0,
            rms_norm_eps=self.rms_norm_eps * self._stream_factor**2,
            tie_word_embeddings=self.tie_word_embeddings
            and self.fold_factor(Role.EMBED) == self.fold_factor(Role.LM_HEAD),
        )

    def fold_factor(self, role: Role) -> float:
        """What a weight of `role` is multiplied by when the three scalars are folded away.

        Matrices that may be quantized get powers of two, which change no significant bit of a weight or a scale. What
        is left of the scalars, between 0.7 and 1.5, goes into the embedding and the final norm.
        """
        return {
            Role.EMBED: self.scale_emb * self._stream_factor,
            Role.O: _nearest_power_of_two(self.residual_scale),
            Role.DOWN: _nearest_power_of_two(self.residual_scale),
            Role.FINAL_NORM: _nearest_power_of_two(self.logit_divisor) / self.logit_divisor,
            Role.LM_HEAD: 1.0 / _nearest_power_of_two(self.logit_divisor),
        }.get(role, 1.0)

    @property
    def _stream_factor(self) -> float:
        """The folded model's residual stream over this one's; its branches are scaled by a power of two."""
        return _nearest_power_of_two(self.residual_scale) / self.residual_scale


def _nearest_power_of_two(value: float) -> float:
    """The power of two nearest to a positive number by ratio."""
    return 2.0 ** round(math.log2(value))


def parse_config(config: Mapping[str, Any], *, where: str = "config.json") -> ModelSpec:
    """Read a Hugging Face config of the family.

    Args:
        config: the parsed JSON object.
        where: name used in error messages.

    Raises:
        UnsupportedModel: another family, MoE, MLA, biases, a RoPE type or activation that is not ours.
        BadConfig: a value of the wrong type or outside its range.
    """
    reader = ConfigReader(config, where)
    architecture = _architecture(config, where)
    _refuse_unsupported(config, where)
    hidden = reader.integer("hidden_size", 1, MAX_DIMENSION)
    layers = reader.integer("num_hidden_layers", 1, MAX_LAYERS)
    heads = reader.integer("num_attention_heads", 1, hidden)
    kv_heads = reader.integer("num_key_value_heads", 1, heads, default=heads)
    if heads % kv_heads:
        raise BadConfig(f"{where}: num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if config.get("head_dim") is None and hidden % heads:
        raise BadConfig(f"{where}: num_attention_heads {heads} does not divide hidden_size {hidden}")
    head_dim = reader.integer("head_dim", 2, MAX_DIMENSION, default=hidden // heads)
    if head_dim % 2:
        raise BadConfig(f"{where}: head_dim {head_dim} is odd; rotary embedding needs pairs of channels")
    vocab = reader.integer("vocab_size", 1, MAX_DIMENSION)
    context = reader.integer("max_position_embeddings", 1, 1 << 31, default=2048)
    minicpm = architecture == "minicpm"
    scale_depth = reader.number("scale_depth", default=1.0) if minicpm else math.sqrt(layers)
    dim_model_base = reader.number("dim_model_base", default=1.0) if minicpm else float(hidden)
    return ModelSpec(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", 1, MAX_DIMENSION),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.number("rms_norm_eps", default=1e-6),
        max_position_embeddings=context,
        rope=_rope(config, where, head_dim, context),
        scale_emb=reader.number("scale_emb", default=1.0) if minicpm else 1.0,
        residual_scale=scale_depth / math.sqrt(layers),
        logit_divisor=hidden / dim_model_base,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", default=minicpm),
        bos_token_id=reader.token("bos_token_id", vocab, default=1),
        eos_token_ids=reader.tokens("eos_token_id", vocab, default=2),
        pad_token_id=reader.token("pad_token_id", vocab, default=None),
    )


def _architecture(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures") or []
    known = {"MiniCPMForCausalLM": "minicpm", "MiniCPM4ForCausalLM": "minicpm", "LlamaForCausalLM": "llama"}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadConfig(f"{where}: architectures must be a list of strings, is {str(names)[:80]!r}")
    for name in names:
        if name in known:
            return known[name]
    model_type = config.get("model_type")
    by_type = {"minicpm": "minicpm", "minicpm4": "minicpm", "llama": "llama"}
    if not names and isinstance(model_type, str) and model_type in by_type:
        return by_type[model_type]
    found = names[0] if names else model_type
    raise UnsupportedModel(
        f"{where}: model {found!r} is not of this family",
        hint="supported: MiniCPMForCausalLM (MiniCPM, MiniCPM4, MiniCPM4.1, BitCPM4) and LlamaForCausalLM (MiniCPM5)",
    )


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"{where}: hidden_act {activation!r} is not supported; only silu")
    for key in ("num_experts", "attention_bias", "mlp_bias"):
        if config.get(key):
            raise UnsupportedModel(f"{where}: {key} {config[key]!r} is not supported; dense models without biases only")


def _rope(config: Mapping[str, Any], where: str, head_dim: int, context: int) -> RopeSpec:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise BadConfig(f"{where}: rope_scaling must be an object or null, is {str(scaling)[:80]!r}")
    reader = ConfigReader(scaling, f"{where}: rope_scaling")
    theta = (
        reader.number("rope_theta")
        if "rope_theta" in scaling
        else ConfigReader(config, where).number("rope_theta", default=10000.0)
    )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeSpec(theta=theta, kind="default")
    if kind not in ("longrope", "su"):
        raise UnsupportedModel(f"{where}: rope type {str(kind)[:80]!r} is not supported; only default and longrope")
    original = reader.integer(
        "original_max_position_embeddings",
        2,
        1 << 31,
        default=config.get("original_max_position_embeddings") or context,
    )
    extended = max(context / original, 1.0)
    return RopeSpec(
        theta=theta,
        kind="longrope",
        short_factor=reader.factors("short_factor", head_dim // 2),
        long_factor=reader.factors("long_factor", head_dim // 2),
        original_max_position_embeddings=original,
        attention_factor=math.sqrt(1.0 + math.log(extended) / math.log(original)),
    )

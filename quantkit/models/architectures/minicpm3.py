"""MiniCPM3: MiniCPM's scalars and MLP, and multi-head latent attention (MLA).

    q         = W_q_b rms_norm(W_q_a x)                          per head qk_nope_head_dim + qk_rope_head_dim channels
    c, k_rope = W_kv_a x                                         kv_lora_rank and qk_rope_head_dim channels
    k_nope, v = W_kv_b rms_norm(c)                               per head qk_nope_head_dim + v_head_dim channels
    k         = k_nope, rotate(k_rope)                           k_rope is one for all heads
    o         = W_o softmax(q k^T / sqrt(qk_nope_head_dim + qk_rope_head_dim)) v

with the last qk_rope_head_dim channels of q rotated. The norms of the latents add `LatentSpec.norm_eps`.

No plain Llama computes that, so it is not folded. What the config leaves out and loaders fill in differently is asked
for by name. Sources: the published config.json; transformers `models/minicpm3`, vLLM `models/minicpm3.py`, mlx-lm
`models/minicpm3.py`, llama.cpp `src/models/minicpm3.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.architectures._config_keys import Shape, check_keys
from quantkit.models.architectures._dense_decoder import MAX_DIMENSION, MAX_HEAD_DIM, DenseDecoder
from quantkit.models.architectures._latent import NORM_EPS, LatentSpec
from quantkit.models.architectures._rope import MINICPM_TYPES, OLD_NAME
from quantkit.models.architectures.minicpm import scalars
from quantkit.models.config_reader import ConfigReader, shown
from quantkit.models.spec import LayerGroup, ModelSpec, Role

if TYPE_CHECKING:
    from quantkit.models.architectures._latent_block import LatentBlock

RANKS = ("q_lora_rank", "kv_lora_rank")
PARTS = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
SCALARS = ("scale_emb", "scale_depth", "dim_model_base")
ASKED_FOR = (*SCALARS, "rms_norm_eps")
"""Keys that loaders fill in differently: transformers with MiniCPM3-4B's numbers, OpenBMB's code with 1 and 1e-6."""
NOT_FOLDED = "latent attention (MLA) cannot be folded into a plain Llama, which has none"
HINT = "write the model as it is, without --arch llama"

LAYER_NAMES: Mapping[Role, str] = {
    Role.ATTN_NORM: "input_layernorm.weight",
    Role.Q_A: "self_attn.q_a_proj.weight",
    Role.Q_A_NORM: "self_attn.q_a_layernorm.weight",
    Role.Q_B: "self_attn.q_b_proj.weight",
    Role.KV_A: "self_attn.kv_a_proj_with_mqa.weight",
    Role.KV_A_NORM: "self_attn.kv_a_layernorm.weight",
    Role.KV_B: "self_attn.kv_b_proj.weight",
    Role.O: "self_attn.o_proj.weight",
    Role.MLP_NORM: "post_attention_layernorm.weight",
    Role.GATE: "mlp.gate_proj.weight",
    Role.UP: "mlp.up_proj.weight",
    Role.DOWN: "mlp.down_proj.weight",
}
GROUPS = (
    LayerGroup(roles=(Role.Q_A, Role.KV_A), fed_by=Role.ATTN_NORM, writer=Role.O),
    LayerGroup(roles=(Role.Q_B,), fed_by=Role.Q_A_NORM, writer=Role.O, weighed=False),
    LayerGroup(roles=(Role.KV_B,), fed_by=Role.KV_A_NORM, writer=Role.O, weighed=False),
    LayerGroup(roles=(Role.O,), fed_by=None, writer=Role.O),
    LayerGroup(roles=(Role.GATE, Role.UP), fed_by=Role.MLP_NORM, writer=Role.DOWN, weighed=False),
    LayerGroup(roles=(Role.DOWN,), fed_by=Role.UP, writer=Role.DOWN),
)
"""q_b and kv_b are the widest layers, 3840 and 5120 rows: what weighs their outputs would take 10 GiB in 62 blocks.
Rows of kv_b that make values cannot be divided without those that make keys, so nothing feeds o that could be."""


class MiniCPM3(DenseDecoder):
    """The family; methods are those of `quantkit.models.spec.Architecture`."""

    def spec(self, config: Mapping[str, Any], where: str) -> ModelSpec:
        """See `Architecture.spec`."""
        reader = ConfigReader(config, where)
        missing = [key for key in ASKED_FOR if config.get(key) is None]
        if missing:
            raise BadConfig(f"{where}: {missing[0]} is missing, and loaders of MiniCPM3 differ in what it is then")
        hidden = reader.integer("hidden_size", 1, MAX_DIMENSION)
        heads = reader.integer("num_attention_heads", 1, hidden)
        latent = _latent(reader, hidden, heads)
        if reader.integer("num_key_value_heads", 1, hidden, default=heads) != heads:
            raise UnsupportedModel(
                f"{where}: num_key_value_heads {config['num_key_value_heads']} is not supported; in latent attention "
                f"every head has keys of its own, {heads}"
            )
        context = reader.integer("max_position_embeddings", 1, 1 << 31, default=2048)
        shared = _shared(config)
        check_keys(shared, where, Shape(head_dim=latent.qk_head_dim, context=context))
        # RoPE is that of heads as wide as the part that is rotated.
        dense = super().spec({**shared, "head_dim": latent.qk_rope_head_dim}, where)
        return replace(dense, head_dim=latent.qk_head_dim, latent=latent)

    def notes(self, config: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """See `Architecture.notes`."""
        return super().notes(_shared(config), where)

    def config(self, spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any]:
        """See `Architecture.config`. RoPE's type stands under both names: OpenBMB's code knows the older one alone."""
        config = super().config(spec, source)
        del config["head_dim"]  # of this family it means the rotated part in one loader, and nothing in others
        scaling = config[OLD_NAME]
        named = {} if scaling is None else {OLD_NAME: {**scaling, "type": scaling["rope_type"]}}
        latent = _latent_of(spec)
        return {**config, **named, **{key: getattr(latent, key) for key in (*RANKS, *PARTS)}}

    def understood(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Architecture.understood`."""
        own = {key: config[key] for key in (*RANKS, *PARTS) if key in config}
        return {**super().understood(_shared(config)), **own}

    def layer_shape(self, spec: ModelSpec, role: Role) -> tuple[int, ...]:
        """See `ModelSpec.layer_shape`."""
        latent, heads, hidden = _latent_of(spec), spec.num_attention_heads, spec.hidden_size
        own = {
            Role.Q_A: (latent.q_lora_rank, hidden),
            Role.Q_A_NORM: (latent.q_lora_rank,),
            Role.Q_B: (heads * latent.qk_head_dim, latent.q_lora_rank),
            Role.KV_A: (latent.kv_lora_rank + latent.qk_rope_head_dim, hidden),
            Role.KV_A_NORM: (latent.kv_lora_rank,),
            Role.KV_B: (heads * latent.kv_head_dim, latent.kv_lora_rank),
            Role.O: (hidden, heads * latent.v_head_dim),
        }
        return own[role] if role in own else super().layer_shape(spec, role)

    def folded(self, spec: ModelSpec) -> ModelSpec:
        """Refused: see the module's docstring."""
        raise UnsupportedModel(NOT_FOLDED, hint=HINT)

    def fold_factor(self, spec: ModelSpec, role: Role) -> float:
        """Refused: see the module's docstring."""
        raise UnsupportedModel(NOT_FOLDED, hint=HINT)

    def block(self, spec: ModelSpec) -> LatentBlock:
        """See `Architecture.block`."""
        from quantkit.models.architectures._latent_block import LatentBlock  # noqa: PLC0415 - imports torch

        return LatentBlock(spec)


def with_shared_eps(spec: ModelSpec) -> ModelSpec:
    """The model as engines compute it that take `rms_norm_eps` in the norms of the latents as well."""
    if spec.latent is None:
        return spec
    return replace(spec, latent=replace(spec.latent, norm_eps=spec.rms_norm_eps))


def with_norms_of(spec: ModelSpec, other: ModelSpec) -> ModelSpec:
    """`spec` with what norms of latents add in `other`, where that is one of the two that engines take for each other:
    `NORM_EPS`, or `rms_norm_eps`."""
    if spec.latent is None or other.latent is None or other.latent.norm_eps not in (NORM_EPS, other.rms_norm_eps):
        return spec
    return replace(spec, latent=replace(spec.latent, norm_eps=other.latent.norm_eps))


def _latent_of(spec: ModelSpec) -> LatentSpec:
    assert spec.latent is not None, "a spec of this architecture has it"
    return spec.latent


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a dense decoder would say as well: it refuses the others by name."""
    return {key: value for key, value in config.items() if key not in (*RANKS, *PARTS, "head_dim", "qk_head_dim")}


def _latent(reader: ConfigReader, hidden: int, heads: int) -> LatentSpec:
    config, where = reader.config, reader.where
    if "q_lora_rank" in config and config["q_lora_rank"] is None:
        raise UnsupportedModel(f"{where}: q_lora_rank null is not supported; only queries that are made of a latent")
    ranks = {key: reader.integer(key, 1, MAX_DIMENSION) for key in RANKS}
    nope, rope = (reader.integer(key, 1, MAX_HEAD_DIM) for key in PARTS[:2])
    if rope % 2:
        raise BadConfig(f"{where}: qk_rope_head_dim {rope} is odd; rotary embedding needs pairs of channels")
    if config.get("v_head_dim") is None and hidden % heads:
        raise BadConfig(f"{where}: num_attention_heads {heads} does not divide hidden_size {hidden}")
    values = reader.integer("v_head_dim", 1, MAX_HEAD_DIM, default=hidden // heads)
    # transformers writes the rotated part there, and the whole of a query.
    for key, known in (("head_dim", (rope, nope + rope)), ("qk_head_dim", (nope + rope,))):
        if config.get(key) is not None and config[key] not in known:
            raise UnsupportedModel(
                f"{where}: {key} {shown(config[key])} is not supported; only {' or '.join(map(str, known))}"
            )
    return LatentSpec(**ranks, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=values)


ARCHITECTURE = MiniCPM3(
    name="minicpm3",
    summary="MiniCPM3ForCausalLM (MiniCPM3-4B)",
    classes=("MiniCPM3ForCausalLM",),
    model_types=("minicpm3",),
    scalars=scalars,
    scalar_keys=SCALARS,
    carried_keys=("mup_denominator",),
    ties_embeddings=True,
    rope_types=MINICPM_TYPES,
    reads_attention_factor=False,
    layer_names=LAYER_NAMES,
    groups=GROUPS,
)

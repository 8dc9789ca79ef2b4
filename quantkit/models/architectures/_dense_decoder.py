"""What dense decoders share: Llama's tensors and forward pass, and the scalars in which families differ from it.

    x = embed[ids] * scale_emb
    x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      per block, s = residual_scale
    logits = lm_head(rms_norm(x) / logit_divisor)

A family of this kind is one file with a `DenseDecoder`. Another kind (latent attention, experts) brings its own class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.architectures._config_keys import READ, Shape, check_keys, code_asked_for, unknown_keys
from quantkit.models.architectures._rope import LLAMA_TYPES, read_rope, rope_notes
from quantkit.models.architectures._sparse import KEY, read_sparse
from quantkit.models.config import decoder_config
from quantkit.models.config_reader import ConfigReader, shown
from quantkit.models.spec import BLOCKS, EMBEDDING, FINAL_NORM, HEAD, LayerGroup, ModelSpec, Role, TensorSlot

if TYPE_CHECKING:
    from quantkit.models.torch_model import Block

LAYER_NAMES: Mapping[Role, str] = {
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
GROUPS = (
    LayerGroup(roles=(Role.Q, Role.K, Role.V), fed_by=Role.ATTN_NORM, writer=Role.O),
    LayerGroup(roles=(Role.O,), fed_by=Role.V, writer=Role.O),
    LayerGroup(roles=(Role.GATE, Role.UP), fed_by=Role.MLP_NORM, writer=Role.DOWN, weighed=False),
    LayerGroup(roles=(Role.DOWN,), fed_by=Role.UP, writer=Role.DOWN),
)
MAX_DIMENSION = 1 << 24
MAX_LAYERS = 1024
MAX_HEAD_DIM = 1 << 14
"""Released models have up to 256 channels per head; RoPE's factors are made for as many as a config says."""
EPSILON = (1e-12, 0.1)
"""What rms_norm_eps may be: float32 adds less to no mean square of a working model, and more would drown it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """What a family multiplies by where Llama does not; see the module's docstring."""

    scale_emb: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0


def no_scalars(reader: ConfigReader, hidden: int, layers: int) -> Scalars:
    """Those of a Llama."""
    return Scalars()


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseDecoder:
    """A family of dense decoders; methods and first two attributes are those of `quantkit.models.spec.Architecture`.

    classes, model_types: values of `architectures` and `model_type` that mean this family.
    scalars: reads its scalars, given hidden_size and num_hidden_layers. scalar_keys: the config keys that it reads.
    carried_keys: config keys that are written as they stand; nothing here is computed from them.
    ties_embeddings: what the family assumes where the config does not say.
    rope_types: types of RoPE that the family's own code has.
    reads_attention_factor: whether `attention_factor` and `factor` of LongRoPE count, as in transformers.
    remarks: config keys that are kept and have no effect here, and what to say of them.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    scalars: Callable[[ConfigReader, int, int], Scalars] = no_scalars
    scalar_keys: tuple[str, ...] = ()
    carried_keys: tuple[str, ...] = ()
    ties_embeddings: bool = False
    rope_types: tuple[str, ...] = LLAMA_TYPES
    reads_attention_factor: bool = True
    remarks: Mapping[str, str] = field(default_factory=dict)
    layer_names: Mapping[Role, str] = field(default_factory=lambda: LAYER_NAMES)
    groups: tuple[LayerGroup, ...] = GROUPS

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether `architectures` names one of the classes, or `model_type` the family where there is no class."""
        names = config.get("architectures") or []
        return any(name in self.classes for name in names) if names else config.get("model_type") in self.model_types

    def spec(self, config: Mapping[str, Any], where: str) -> ModelSpec:
        """See `Architecture.spec`."""
        reader = ConfigReader(config, where)
        self._check_type(config, where)
        hidden = reader.integer("hidden_size", 1, MAX_DIMENSION)
        layers = reader.integer("num_hidden_layers", 1, MAX_LAYERS)
        heads = reader.integer("num_attention_heads", 1, hidden)
        head_dim = _head_dim(reader, hidden, heads)
        vocab = reader.integer("vocab_size", 1, MAX_DIMENSION)
        context = reader.integer("max_position_embeddings", 1, 1 << 31, default=2048)
        check_keys(config, where, Shape(head_dim=head_dim, context=context))
        scalars = self.scalars(reader, hidden, layers)
        _check_carried(config, self.carried_keys, where)
        return ModelSpec(
            architecture=self.name,
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=reader.integer("intermediate_size", 1, MAX_DIMENSION),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=_key_value_heads(reader, heads),
            head_dim=head_dim,
            rms_norm_eps=reader.number("rms_norm_eps", *EPSILON, default=1e-6),
            max_position_embeddings=context,
            rope=read_rope(
                config, where, head_dim, context, types=self.rope_types, reads_factor=self.reads_attention_factor
            ),
            scale_emb=scalars.scale_emb,
            residual_scale=scalars.residual_scale,
            logit_divisor=scalars.logit_divisor,
            tie_word_embeddings=reader.boolean("tie_word_embeddings", default=self.ties_embeddings),
            bos_token_id=reader.token("bos_token_id", vocab, default=1),
            eos_token_ids=reader.tokens("eos_token_id", vocab, default=2),
            pad_token_id=reader.padding(vocab),
            sparse=read_sparse(config, where) if KEY in self.carried_keys else None,
        )

    def notes(self, config: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """See `Architecture.notes`."""
        return (
            *_padding_note(config, where),
            *(f"{where}: {key} {text}" for key, text in self.remarks.items() if config.get(key)),
            *code_asked_for(config, where),
            *rope_notes(config, where, reads_factor=self.reads_attention_factor),
            *unknown_keys(config, where, (*self.scalar_keys, *self.carried_keys)),
        )

    def config(self, spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any]:
        """See `Architecture.config`."""
        spelled = {key: source[key] for key in (*self.scalar_keys, *self.carried_keys) if source.get(key) is not None}
        named = {"architectures": [self.classes[0]], "model_type": self.model_types[0]}
        return {**decoder_config(spec, source), **spelled, **named}

    def understood(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Architecture.understood`."""
        words = {key: value for key, value in config.items() if key in READ or key in self.scalar_keys}
        return {**words, "architectures": [self.classes[0]], "model_type": self.model_types[0]}

    def slots(self, spec: ModelSpec) -> tuple[TensorSlot, ...]:
        """See `ModelSpec.slots`."""
        outer = (spec.vocab_size, spec.hidden_size)
        slots = [TensorSlot(EMBEDDING, Role.EMBED, None, outer)]
        shapes = {role: self.layer_shape(spec, role) for role in self.layer_names}
        for layer in range(spec.num_hidden_layers):
            slots += [
                TensorSlot(f"{BLOCKS}{layer}.{name}", role, layer, shapes[role])
                for role, name in self.layer_names.items()
            ]
        slots.append(TensorSlot(FINAL_NORM, Role.FINAL_NORM, None, (spec.hidden_size,)))
        if not spec.tie_word_embeddings:
            slots.append(TensorSlot(HEAD, Role.LM_HEAD, None, outer))
        return tuple(slots)

    def layer_shape(self, spec: ModelSpec, role: Role) -> tuple[int, ...]:
        """See `ModelSpec.layer_shape`."""
        queries = spec.num_attention_heads * spec.head_dim
        keys = spec.num_key_value_heads * spec.head_dim
        return {
            Role.Q: (queries, spec.hidden_size),
            Role.K: (keys, spec.hidden_size),
            Role.V: (keys, spec.hidden_size),
            Role.O: (spec.hidden_size, queries),
            Role.GATE: (spec.intermediate_size, spec.hidden_size),
            Role.UP: (spec.intermediate_size, spec.hidden_size),
            Role.DOWN: (spec.hidden_size, spec.intermediate_size),
        }.get(role, (spec.hidden_size,))

    def folded(self, spec: ModelSpec) -> ModelSpec:
        """See `ModelSpec.folded`.

        The folded model's residual stream is this one's times `_stream_factor`, which RMSNorm does not notice when its
        epsilon grows by the square.
        """
        epsilon = spec.rms_norm_eps * _stream_factor(spec) ** 2
        if not EPSILON[0] <= epsilon <= EPSILON[1]:
            raise UnsupportedModel(
                f"folding makes rms_norm_eps {spec.rms_norm_eps:g} {epsilon:g}, and configs have {EPSILON[0]:g} to "
                f"{EPSILON[1]:g}",
                hint="write the model as it is: --arch native",
            )
        tied = self.fold_factor(spec, Role.EMBED) == self.fold_factor(spec, Role.LM_HEAD)
        return replace(
            spec,
            architecture="llama",
            scale_emb=1.0,
            residual_scale=1.0,
            logit_divisor=1.0,
            rms_norm_eps=epsilon,
            tie_word_embeddings=spec.tie_word_embeddings and tied,
            sparse=None,
        )

    def fold_factor(self, spec: ModelSpec, role: Role) -> float:
        """What a weight of `role` is multiplied by when the three scalars are folded away.

        Matrices that may be quantized get powers of two, which change no significant bit of a weight or a scale. What
        is left of the scalars, between 0.7 and 1.5, goes into the embedding and the final norm.
        """
        return {
            Role.EMBED: spec.scale_emb * _stream_factor(spec),
            Role.O: _nearest_power_of_two(spec.residual_scale),
            Role.DOWN: _nearest_power_of_two(spec.residual_scale),
            Role.FINAL_NORM: _nearest_power_of_two(spec.logit_divisor) / spec.logit_divisor,
            Role.LM_HEAD: 1.0 / _nearest_power_of_two(spec.logit_divisor),
        }.get(role, 1.0)

    def block(self, spec: ModelSpec) -> Block:
        """See `Architecture.block`."""
        from quantkit.models.torch_model import Block  # noqa: PLC0415 - imports torch

        return Block(spec)

    def _check_type(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a `model_type` of another family than `architectures`: loaders go by the one or by the other."""
        kind = config.get("model_type")
        if kind is not None and kind not in self.model_types:
            raise UnsupportedModel(
                f"{where}: model_type {shown(kind)} contradicts architectures {shown(config.get('architectures'))}",
                hint=f"a {self.classes[0]} has model_type {self.model_types[0]!r}",
            )


def _head_dim(reader: ConfigReader, hidden: int, heads: int) -> int:
    if reader.config.get("head_dim") is None and hidden % heads:
        raise BadConfig(f"{reader.where}: num_attention_heads {heads} does not divide hidden_size {hidden}")
    head_dim = reader.integer("head_dim", 2, MAX_HEAD_DIM, default=hidden // heads)
    if head_dim % 2:
        raise BadConfig(f"{reader.where}: head_dim {head_dim} is odd; rotary embedding needs pairs of channels")
    return head_dim


def _key_value_heads(reader: ConfigReader, heads: int) -> int:
    found = reader.integer("num_key_value_heads", 1, heads, default=heads)
    if heads % found:
        raise BadConfig(f"{reader.where}: num_key_value_heads {found} does not divide num_attention_heads {heads}")
    return found


def _check_carried(config: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Refuse values that are written as they stand and are more than numbers: text may name code."""
    for key in keys:
        value = config.get(key)
        numbers = value.values() if isinstance(value, Mapping) else () if value is None else (value,)
        if not all(isinstance(number, (int, float)) and abs(number) < 1e15 for number in numbers):
            raise BadConfig(f"{where}: {key} must be a number, or an object of numbers, is {shown(value)}")


def _stream_factor(spec: ModelSpec) -> float:
    """The folded model's residual stream over this one's; its branches are scaled by a power of two."""
    return _nearest_power_of_two(spec.residual_scale) / spec.residual_scale


def _nearest_power_of_two(value: float) -> float:
    """The power of two nearest to a positive number by ratio."""
    return 2.0 ** round(math.log2(value))


def _padding_note(config: Mapping[str, Any], where: str) -> Iterator[str]:
    padding, vocab = config.get("pad_token_id"), config["vocab_size"]
    if type(padding) is int and padding >= vocab:
        yield f"{where}: pad_token_id {padding} is not below vocab_size {vocab} and counts as none"

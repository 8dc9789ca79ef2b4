"""MiniCPM-SALA: MiniCPM's scalars, and two kinds of attention, which `mixer_types` deals out to the layers.

"minicpm4": InfLLM-v2 as in MiniCPM4.1 but without RoPE, its output times sigmoid(W_o_gate x).
"lightning-attn": linear attention with a constant decay for each head, and as many heads of keys as of queries. RMSNorm
of each head's queries and keys, then RoPE; RMSNorm of all heads' outputs together, times sigmoid(W_z x).

Its weights can be read and its layers computed by the reference. Everything that takes a layer for one of a dense
decoder (calibration, containers, engines) is refused: methods that only they ask for raise `UnsupportedModel`.

Sources: the published config.json; SGLang's, vLLM's and InfiniLM's ports of OpenBMB's `modeling_minicpm_sala.py`. What
these do not have, or do not do alike, is refused by name, and so is a switch that the config does not set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.architectures._dense_decoder import LAYER_NAMES, DenseDecoder
from quantkit.models.architectures._lightning import LightningSpec
from quantkit.models.architectures.minicpm import scalars
from quantkit.models.config_reader import ConfigReader, shown
from quantkit.models.spec import BLOCKS, EMBEDDING, FINAL_NORM, HEAD, LayerGroup, ModelSpec, Role, TensorSlot

if TYPE_CHECKING:
    from torch import nn

ATTENTION, LIGHTNING = ("minicpm4",), ("lightning-attn", "lightning_attn", "lightning")
"""Words of `mixer_types`."""
SETTLED: Mapping[str, object] = {
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "qk_norm": True,
    "use_output_gate": True,
    "use_output_norm": True,
}
"""Switches, and the only value of each that is known to belong to a model; ports differ in what a missing one means."""
READ = ("mixer_types", "lightning_nh", "lightning_nkv", "lightning_head_dim", *SETTLED)
BRANCHES = ("attn_", "lightning", "minicpm4", "mixer", "sparse_")
"""What names of further switches of the two kinds begin with."""
OWN_NAMES: Mapping[Role, str] = {
    Role.Q_NORM: "self_attn.q_norm.weight",
    Role.K_NORM: "self_attn.k_norm.weight",
    Role.O_NORM: "self_attn.o_norm.weight",
    Role.Z: "self_attn.z_proj.weight",
    Role.O_GATE: "self_attn.o_gate.weight",
}
GATED = (Role.O_GATE,)
"""What only layers of the first kind have."""
LINEAR = (Role.Q_NORM, Role.K_NORM, Role.O_NORM, Role.Z)
"""And those of the second."""
_DENSE = DenseDecoder(
    name="sala",
    summary="MiniCPMSALAForCausalLM (MiniCPM-SALA: inspect, and run in the reference)",
    classes=("MiniCPMSALAForCausalLM",),
    model_types=("minicpm_sala",),
    scalars=scalars,
    scalar_keys=("scale_emb", "scale_depth", "dim_model_base"),
    carried_keys=("sparse_config", "mup_denominator"),
    rope_types=("default",),
    reads_attention_factor=False,
)
"""What of a config a dense decoder has as well."""


class Sala:
    """The family; see the module's docstring, and `quantkit.models.spec.Architecture` for the methods."""

    name = _DENSE.name
    summary = _DENSE.summary
    layer_names: Mapping[Role, str] = {**LAYER_NAMES, **OWN_NAMES}

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """See `Architecture.recognizes`."""
        return _DENSE.recognizes(config)

    def spec(self, config: Mapping[str, Any], where: str) -> ModelSpec:
        """See `Architecture.spec`."""
        dense = _DENSE.spec(_shared(config), where)
        reader = ConfigReader(config, where)
        _check_switches(config, where)
        tied = reader.boolean("tie_word_embeddings")
        return replace(dense, tie_word_embeddings=tied, lightning=_lightning(reader, dense))

    def notes(self, config: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """See `Architecture.notes`."""
        return _DENSE.notes(_shared(config), where)

    def slots(self, spec: ModelSpec) -> tuple[TensorSlot, ...]:
        """See `ModelSpec.slots`."""
        outer = (spec.vocab_size, spec.hidden_size)
        slots = [TensorSlot(EMBEDDING, Role.EMBED, None, outer)]
        for layer in range(spec.num_hidden_layers):
            slots += _layer_slots(spec, layer)
        slots.append(TensorSlot(FINAL_NORM, Role.FINAL_NORM, None, (spec.hidden_size,)))
        if not spec.tie_word_embeddings:
            slots.append(TensorSlot(HEAD, Role.LM_HEAD, None, outer))
        return tuple(slots)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Refused: see `_refuse`."""
        _refuse()

    def config(self, spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any]:
        """Refused: see `_refuse`."""
        _refuse()

    def understood(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Refused: see `_refuse`."""
        _refuse()

    def layer_shape(self, spec: ModelSpec, role: Role) -> tuple[int, ...]:
        """Refused: see `_refuse`. It depends on the layer."""
        _refuse()

    def folded(self, spec: ModelSpec) -> ModelSpec:
        """Refused: see `_refuse`."""
        _refuse()

    def fold_factor(self, spec: ModelSpec, role: Role) -> float:
        """Refused: see `_refuse`."""
        _refuse()

    def block(self, spec: ModelSpec) -> nn.Module:
        """Refused: see `_refuse`."""
        _refuse()


def _refuse() -> NoReturn:
    """Calibration, containers and engines take all layers for alike, and as those of a dense decoder."""
    raise UnsupportedModel(
        "lightning attention (MiniCPM-SALA) can be inspected, and run in the reference; nothing else here knows it"
    )


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a dense decoder would say as well: it refuses the others by name."""
    return {key: value for key, value in config.items() if key not in READ}


def _check_switches(config: Mapping[str, Any], where: str) -> None:
    for key, wanted in SETTLED.items():
        found = config.get(key)
        if type(found) is not type(wanted) or found != wanted:
            said = "is missing" if found is None else f"{shown(found)} is not supported"
            raise UnsupportedModel(f"{where}: {key} {said}; known of this family is {key} {wanted!r} only")
    for key, value in config.items():
        if key.startswith(BRANCHES) and key not in READ and key != "sparse_config" and value:
            raise UnsupportedModel(
                f"{where}: {shown(key)} {shown(value)} is not understood, and may change what a layer computes"
            )


def _lightning(reader: ConfigReader, dense: ModelSpec) -> LightningSpec:
    """Which layers are linear attention, and its heads."""
    mixers, layers = reader.config.get("mixer_types"), dense.num_hidden_layers
    if not isinstance(mixers, list) or len(mixers) != layers:
        raise BadConfig(f"{reader.where}: mixer_types must be a list of {layers} words, one for each layer")
    for layer, word in enumerate(mixers):
        if word not in ATTENTION + LIGHTNING:
            known = ", ".join(ATTENTION + LIGHTNING)
            raise UnsupportedModel(
                f"{reader.where}: mixer_types[{layer}] {shown(word)} is not understood; only {known}"
            )
    heads = reader.integer("lightning_nh", 1, dense.hidden_size)
    for key, wanted, what in (
        ("lightning_nkv", heads, "as many heads of keys as of queries (lightning_nh)"),
        ("lightning_head_dim", dense.head_dim, "head_dim"),
    ):
        if reader.integer(key, 1, 1 << 24) != wanted:
            raise UnsupportedModel(
                f"{reader.where}: {key} {reader.config[key]} is not supported; only {what}, {wanted}"
            )
    linear = tuple(layer for layer, word in enumerate(mixers) if word in LIGHTNING)
    return LightningSpec(layers=linear, heads=heads, head_dim=dense.head_dim)


def _layer_slots(spec: ModelSpec, layer: int) -> Iterator[TensorSlot]:
    """The tensors of a layer, by its kind."""
    lightning = spec.lightning
    assert lightning is not None
    linear, width = layer in lightning.layers, spec.hidden_size
    queries = (lightning.heads if linear else spec.num_attention_heads) * spec.head_dim
    keys = queries if linear else spec.num_key_value_heads * spec.head_dim
    shapes: dict[Role, tuple[int, ...]] = {
        **dict.fromkeys((Role.Q, Role.Z, Role.O_GATE), (queries, width)),
        **dict.fromkeys((Role.K, Role.V), (keys, width)),
        Role.O: (width, queries),
        **dict.fromkeys((Role.GATE, Role.UP), (spec.intermediate_size, width)),
        Role.DOWN: (width, spec.intermediate_size),
        **dict.fromkeys((Role.Q_NORM, Role.K_NORM), (spec.head_dim,)),
        Role.O_NORM: (queries,),
    }
    for role, name in ARCHITECTURE.layer_names.items():
        if role not in (GATED if linear else LINEAR):
            yield TensorSlot(f"{BLOCKS}{layer}.{name}", role, layer, shapes.get(role, (width,)))


ARCHITECTURE = Sala()

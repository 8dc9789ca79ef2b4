"""What a model is: `ModelSpec`, completely specified data, and the seam to the family that it belongs to.

`quantkit.models.recognition` asks the files of `quantkit/models/architectures/` which of them knows a config.json; that
one materialises every default (MiniCPM4-0.5B's config omits `tie_word_embeddings` and `rope_theta`, and loaders differ
in what they then assume) and refuses by name what it does not understand. A `ModelSpec` names its architecture, and
asks it for what is not a number: tensors, groups of layers, folding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from quantkit import discovery
from quantkit.models.architectures._latent import LatentSpec
from quantkit.models.architectures._lightning import LightningSpec
from quantkit.models.architectures._rope_spec import RopeSpec, longrope_attention_factor

if TYPE_CHECKING:
    from torch import nn

ROOM = "quantkit.models.architectures"

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
"""Hugging Face's names of what stands outside the blocks."""
BLOCKS = "model.layers."
"""What the names of a block's tensors begin with, before its number."""
COARSE = 4
"""Sparse attention takes means of keys a second time, over so many times as many tokens, as far apart."""


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
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    O_NORM = "o_norm"
    O_GATE = "o_gate"
    Z = "z"
    Q_A, Q_A_NORM, Q_B = "q_a", "q_a_norm", "q_b"
    KV_A, KV_A_NORM, KV_B = "kv_a", "kv_a_norm", "kv_b"


LATENT_ROLES = (Role.Q_A, Role.KV_A, Role.Q_B, Role.KV_B)
"""Layers of latent attention in the place of q, k and v."""
LINEAR_ROLES = (Role.Q, Role.K, Role.V, *LATENT_ROLES, Role.O, Role.GATE, Role.UP, Role.DOWN)
NORM_ROLES = tuple(role for role in Role if role.value.endswith("_norm"))


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One tensor that the model must have: its Hugging Face name, role, layer (None outside blocks) and shape."""

    name: str
    role: Role
    layer: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Linear layers of a block that read the same input.

    roles: the layers.
    fed_by: whose outputs they read, where these can be divided and the layers' columns multiplied without changing the
        function (`quantkit.solver.smoothing`); None where they cannot.
    writer: the layer that carries this half of the block into the residual stream, one of `roles` or of a later group.
    weighed: whether errors of their outputs are weighed by what they do to the predictions
        (`quantkit.calibration.fisher` says why not all are).
    """

    roles: tuple[Role, ...]
    fed_by: Role | None
    writer: Role
    weighed: bool = True

    @property
    def writes(self) -> bool:
        """Whether the outputs go into the residual stream."""
        return self.roles == (self.writer,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSpec:
    """InfLLM-v2 sparse attention as `sparse_config` describes it, with the defaults of OpenBMB's code. In tokens:

    kernel_size, kernel_stride: of the means of keys that blocks are scored by, and from one mean to the next.
    block_size: of what is chosen together; init_blocks first ones and those of the last `window_size` always are,
    and `topk` more by score. dense_len: shorter contexts are dense; -1 = none is.
    use_nope: blocks are scored by queries and keys that are not rotated.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    block_size: int = 64
    window_size: int = 2048
    topk: int = 64
    dense_len: int = 8192
    use_nope: bool = False

    @property
    def local_blocks(self) -> int:
        """Whole blocks of the window."""
        return self.window_size // self.block_size

    def attended(self, length: int) -> int:
        """Tokens that the last of `length` attends to."""
        chosen = (self.topk + self.local_blocks) * self.block_size
        return length if length < self.dense_len else min(length, chosen)

    def means(self, length: int) -> int:
        """Means of keys that are kept of `length` tokens, fine and coarse, per head and layer."""
        return sum(
            max(0, (length - times * self.kernel_size) // (times * self.kernel_stride) + 1) for times in (1, COARSE)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder, completely specified; a dense one where `lightning` and `latent` are None.

    head_dim: channels of a head's queries and keys; of its values, and of the part that is rotated, as well, but for
    latent attention.

    The forward pass (`x` residual stream, `s` = `residual_scale`):
        x = embed[ids] * scale_emb
        x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      per block
        logits = lm_head(rms_norm(x) / logit_divisor)
    """

    architecture: str  # a file of quantkit/models/architectures/: "minicpm", "llama"
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
    sparse: SparseSpec | None = field(default=None, compare=False)
    """How the same weights may attend as well. Two specs that differ in it alone are one model, computed dense."""
    lightning: LightningSpec | None = None
    latent: LatentSpec | None = None

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that RoPE turns: the last ones, where they are not all."""
        return self.head_dim if self.latent is None else self.latent.qk_rope_head_dim

    @property
    def explicit_attention_factor(self) -> float | None:
        """LongRoPE's attention factor where it is not the one that every engine derives from the two contexts."""
        rope = self.rope
        if rope.kind != "longrope":
            return None
        original = rope.original_max_position_embeddings
        derived = longrope_attention_factor(self.max_position_embeddings / original, original)
        return None if math.isclose(rope.attention_factor, derived, rel_tol=1e-6) else rope.attention_factor

    def slots(self) -> tuple[TensorSlot, ...]:
        """Every tensor of the model, in the order of the forward pass."""
        return architecture(self.architecture).slots(self)

    @property
    def layer_names(self) -> Mapping[Role, str]:
        """The tensors of a block, in the order of the forward pass, as they are called within it."""
        return architecture(self.architecture).layer_names

    def weight_name(self, layer: int, role: Role) -> str:
        """The full name of a block's tensor."""
        return f"{BLOCKS}{layer}.{self.layer_names[role]}"

    def layer_shape(self, role: Role) -> tuple[int, ...]:
        """Shape [out, in] of a block's matrix, [size] of its norms."""
        return architecture(self.architecture).layer_shape(self, role)

    @property
    def head_name(self) -> str:
        """The matrix that makes logits: the embedding where they are tied."""
        return EMBEDDING if self.tie_word_embeddings else HEAD

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The linear layers of a block by what they read, in computing order."""
        return architecture(self.architecture).groups

    @property
    def linear_roles(self) -> tuple[Role, ...]:
        """The linear layers of a block in computing order."""
        return tuple(role for group in self.groups for role in group.roles)

    @property
    def readers(self) -> Mapping[Role, tuple[Role, ...]]:
        """Whose outputs can be divided, and the layers behind it, whose columns are then multiplied."""
        return {group.fed_by: group.roles for group in self.groups if group.fed_by is not None}

    @property
    def weighed_roles(self) -> tuple[Role, ...]:
        """Layers whose errors are weighed by what they do to the predictions."""
        return tuple(role for group in self.groups if group.weighed for role in group.roles)

    @property
    def writers(self) -> tuple[Role, ...]:
        """Layers that write to the residual stream."""
        return tuple(dict.fromkeys(group.writer for group in self.groups))

    def folded(self) -> ModelSpec:
        """The plain Llama that computes the same function once `fold_factor` has been multiplied into the weights.

        Raises:
            UnsupportedModel: this architecture cannot be folded, and why.
        """
        return architecture(self.architecture).folded(self)

    def fold_factor(self, role: Role) -> float:
        """What a weight of `role` is multiplied by when the model is folded."""
        return architecture(self.architecture).fold_factor(self, role)


class Architecture(Protocol):
    """A model family. Found by its file's name; the module-level object is called `ARCHITECTURE`."""

    @property
    def name(self) -> str:
        """What `ModelSpec.architecture` calls it."""
        ...

    @property
    def summary(self) -> str:
        """One line: the class that configs name, and the models that have it."""
        ...

    @property
    def layer_names(self) -> Mapping[Role, str]:
        """See `ModelSpec.layer_names`."""
        ...

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """See `ModelSpec.groups`."""
        ...

    def recognizes(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this family, by its `architectures`, or its `model_type` without them."""
        ...

    def spec(self, config: Mapping[str, Any], where: str) -> ModelSpec:
        """The model that a config describes, every default materialised.

        Raises:
            UnsupportedModel: a key that changes the function and is not understood, by name.
            BadConfig: a value of the wrong type or range, or two values that contradict each other.
        """
        ...

    def notes(self, config: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """What a config that `spec` takes says and this family ignores, one line each."""
        ...

    def config(self, spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of `spec`, made of it alone; `source` spells what a spec does not hold (`sparse_config`)."""
        ...

    def understood(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a config that `spec` reads, in its own words: what an engine may be handed of a stranger's."""
        ...

    def slots(self, spec: ModelSpec) -> tuple[TensorSlot, ...]:
        """See `ModelSpec.slots`."""
        ...

    def layer_shape(self, spec: ModelSpec, role: Role) -> tuple[int, ...]:
        """See `ModelSpec.layer_shape`."""
        ...

    def folded(self, spec: ModelSpec) -> ModelSpec:
        """See `ModelSpec.folded`."""
        ...

    def fold_factor(self, spec: ModelSpec, role: Role) -> float:
        """See `ModelSpec.fold_factor`."""
        ...

    def block(self, spec: ModelSpec) -> nn.Module:
        """A decoder block without weights; its methods are those of `quantkit.models.torch_model.Block`.

        Its parameters are called as in `layer_names`. torch is imported here and no earlier.
        """
        ...


@cache
def architecture(name: str) -> Architecture:
    """The architecture `name`; raises `BadOption` for an unknown one."""
    return cast(Architecture, discovery.load(ROOM, name, "architecture"))

"""What a checkpoint is, from its headers, and from its weights where they lie on a grid of codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.files.planned_files import PlannedTensor
from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.family.recognition import described
from quantkit.models.spec import LINEAR_ROLES, ModelSpec
from quantkit.progress import Progress
from quantkit.tensors.gridded import common_grid
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.ternary import TernaryWeights, ternary_weights
from quantkit.tensors.views import TensorView, Weight

MEAN_BYTES = 4
"""Of a channel of a mean of keys, which keeps its precision whatever that of the keys."""
CONTEXTS = (8 << 10, 32 << 10, 128 << 10)
"""Lengths for which it is told what attention costs."""
TRAINED_BITS = 4
"""Codes for which models are trained, besides ternary ones."""


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """What sparse attention costs in a context of `length` tokens: how many of them the last one attends to, and bytes
    that are kept, of keys and values at 16 bits, and of means of keys at 32."""

    length: int
    attended: int
    keys_and_values: int
    means: int

    @property
    def share(self) -> float:
        """Of the tokens, those that are attended to."""
        return self.attended / self.length


@dataclass(frozen=True, slots=True)
class KindCount:
    """Tensors of one type: how many, how many weights, how many bytes (codes, scales and zeros for quantized ones)."""

    type: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts in reading order, sums per type, every tensor, which dense weights are ternary as they lie, and on what
    grid of codes else the first rows of all linear weights lie, if on one."""

    facts: Mapping[str, Any]
    kinds: tuple[KindCount, ...]
    tensors: tuple[PlannedTensor, ...]
    ternary: TernaryWeights
    grid: AffineGroups | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about weights that lie on a grid already, a line each."""
        if self.grid is None:
            return self.ternary.notes
        bits, group = self.grid.bits, self.grid.group_size
        width = "a scale for a row" if group == PER_ROW else f"groups of {group}"
        return (
            f"the linear weights seem to be codes of {bits} bits already, {width}: "
            f"quantize --method exact --bits {bits} --group-size {group} takes them over",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def inspection(checkpoint: Checkpoint, *, progress: Progress | None = None) -> Inspection:
    """Describe `checkpoint`.

    Of every dense linear weight the first rows are read, and the others where these are ternary.
    """
    spec = checkpoint.spec
    linears = [checkpoint.weights[slot.name] for slot in spec.slots() if slot.role in LINEAR_ROLES]
    dense = [view for view in linears if isinstance(view, TensorView)]
    ternary = ternary_weights(dense, progress=progress)
    grid = None if ternary.found else common_grid(dense, TRAINED_BITS)
    tensors = tuple(_describe(name, weight) for name, weight in checkpoint.weights.items())
    weights = sum(weight.size for weight in checkpoint.weights.values())
    total = sum(tensor.nbytes for tensor in tensors)
    facts = {
        "model": described(asdict(spec), spec.architecture),
        "format": checkpoint.format,
        "architecture": spec.architecture,
        "parameters": weights,
        "bits_per_weight": round(8 * total / weights, 3),
        "layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "attention_heads": f"{spec.num_attention_heads} ({spec.num_key_value_heads} key-value), {spec.head_dim} wide",
        "vocabulary": spec.vocab_size,
        "context": spec.max_position_embeddings,
        "rope": _rope(spec.rope) + (", in lightning layers only" if spec.lightning is not None else ""),
        "tied_embeddings": spec.tie_word_embeddings,
        "embedding_scale": spec.scale_emb,
        "residual_scale": round(spec.residual_scale, 7),
        "logit_divisor": spec.logit_divisor,
        "eos_token_ids": list(spec.eos_token_ids),
        **_latent(spec),
        **_lightning(spec),
        **sparse_facts(spec),
    }
    counts: dict[str, list[int]] = {}
    for tensor, weight in zip(tensors, checkpoint.weights.values(), strict=True):
        row = counts.setdefault(tensor.type, [0, 0, 0])
        row[0] += 1
        row[1] += weight.size
        row[2] += tensor.nbytes
    return Inspection(facts, tuple(KindCount(kind, *row) for kind, row in counts.items()), tensors, ternary, grid)


def _rope(rope: RopeSpec) -> str:
    if rope.kind == "longrope":
        return f"theta {rope.theta:g}, LongRoPE, attention factor {rope.attention_factor:.7g}"
    if rope.kind == "dynamic":
        beyond = rope.original_max_position_embeddings
        return f"theta {rope.theta:g}, dynamic NTK by {rope.factor:g} beyond {beyond} tokens"
    return f"theta {rope.theta:g}"


def _latent(spec: ModelSpec) -> dict[str, str]:
    """Of what queries, keys and values are made; nothing where they are made of the hidden state itself."""
    latent = spec.latent
    if latent is None:
        return {}
    heads = f"heads {latent.qk_nope_head_dim} + {latent.qk_rope_head_dim} (rotated), values {latent.v_head_dim} wide"
    return {"latent_attention": f"queries of {latent.q_lora_rank}, keys and values of {latent.kv_lora_rank}; {heads}"}


def _lightning(spec: ModelSpec) -> dict[str, str]:
    """Which layers are of which kind, and what those of linear attention remember; nothing for a dense decoder."""
    lightning = spec.lightning
    if lightning is None:
        return {}
    others = [layer for layer in range(spec.num_hidden_layers) if layer not in lightning.layers]
    wide = f"{lightning.heads} heads, {lightning.head_dim} wide"
    return {
        "softmax_attention_layers": f"{len(others)}, without rope, with an output gate: {_runs(others)}",
        "lightning_attention_layers": f"{len(lightning.layers)}, {wide}: {_runs(lightning.layers)}",
        "lightning_states": f"{lightning.state_bytes / (1 << 20):.1f} MiB at any length, at 32 bits",
    }


def _runs(numbers: Sequence[int]) -> str:
    """Rising numbers, "0, 9, 16-17"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def attention_costs(spec: ModelSpec) -> tuple[AttentionCost, ...]:
    """What sparse attention costs in each of `CONTEXTS`; nothing for a model that has none."""
    sparse = spec.sparse
    if sparse is None:
        return ()
    return tuple(AttentionCost(length, sparse.attended(length), *attention_memory(spec, length)) for length in CONTEXTS)


def sparse_facts(spec: ModelSpec) -> dict[str, str]:
    """What sparse attention sees and remembers; nothing for a model that has none."""
    sparse = spec.sparse
    if sparse is None:
        return {}
    chosen = f"{sparse.topk} of blocks of {sparse.block_size} tokens, and a window of {sparse.window_size}"
    by = ", chosen before rotation" if sparse.use_nope else ""
    dense = f", dense below {sparse.dense_len}" if sparse.dense_len > 0 else ""
    costs = attention_costs(spec)
    shares = (f"{cost.share:.3g} of {cost.length >> 10}K" for cost in costs)
    kept = (
        f"{cost.keys_and_values >> 20} + {cost.means / (1 << 20):.1f} MiB at {cost.length >> 10}K" for cost in costs
    )
    return {
        "sparse_attention": chosen + by + dense,
        "tokens_attended": ", ".join(shares),
        "keys_values_and_means": f"{', '.join(kept)}, at 16 and 32 bits",
    }


def attention_memory(spec: ModelSpec, length: int, *, itemsize: int = 2) -> tuple[int, int]:
    """Bytes that attention remembers of `length` tokens: keys and values, and the float32 means that sparse attention
    adds."""
    layers = spec.num_hidden_layers - (len(spec.lightning.layers) if spec.lightning is not None else 0)
    channels = layers * spec.num_key_value_heads * spec.head_dim
    means = spec.sparse.means(length) if spec.sparse else 0
    return 2 * length * channels * itemsize, means * channels * MEAN_BYTES


def _describe(name: str, weight: Weight) -> PlannedTensor:
    if isinstance(weight, TensorView):
        return PlannedTensor(name, str(weight.dtype), weight.shape, weight.nbytes)
    bits = weight.scheme.stored_bits(*weight.shape)
    plain = isinstance(weight.scheme, (AffineGroups, OffsetGroups))  # their groups say more than a container's name
    kind = str(weight.scheme) if plain or weight.stored_as is None else weight.stored_as
    return PlannedTensor(name, kind, weight.shape, -(-bits // 8))

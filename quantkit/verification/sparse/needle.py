"""The needle probe: a key planted in a long random context is attended to if, and only if, sparse attention sees it.

A model of one block is made for it, with the head shape and `sparse_config` of a model, and a vocabulary of random
words and four tokens whose keys lie along one direction d of each key-value head:

    QUESTION   the last token: its queries are along d
    NEEDLE     its key is along d, long enough to lift the mean of its kernel tenfold above what chance does to means,
               and to have almost all of the question's attention; its value is what the head takes for ANSWER
    SHROUD     its key is against d: a block full of it has the lowest score of all

The question is decoded after the context. A needle among random words must be in a chosen block of every key-value head
and be answered. One in a shroud has no score to be chosen by: in a first block, or in the window, it must be answered
nevertheless; anywhere else it must not, or attention was dense. d lies in channels that RoPE with so large a base does
not turn, so that depth does not matter, before rotation (`use_nope`) or after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption
from quantkit.models.architectures._rope_spec import RopeSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import COARSE, EMBEDDING, NORM_ROLES, ModelSpec, Role, SparseSpec, architecture
from quantkit.protocols import Session
from quantkit.tensors.views import TensorView
from quantkit.verification.sparse.oracle import SparseOracle

WORDS = 252
QUESTION, NEEDLE, SHROUD, ANSWER = range(WORDS, WORDS + 4)
HIDDEN, INTERMEDIATE = 64, 16
THETA = 1e15
CLEAR = 10.0
"""How many standard deviations of a mean of random keys the needle lifts its own by; of 10,000 means chance lifts one
by four."""
LEAD = 3.0
"""By how much the needle outweighs all else that is attended to, as a logarithm."""
NEEDLES = 4
MOST_CONTEXT = 1 << 20
LEAST_HEAD_DIM = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """One context. depth: where the needle is; None = there is none. shrouded: whether its block is filled with SHROUD.
    answered: whether it must be.
    """

    name: str
    depth: int | None
    shrouded: bool
    answered: bool

    @property
    def what(self) -> str:
        """What is read, for messages."""
        return "a context without needle" if self.depth is None else f"the needle {self.name}, at token {self.depth:,},"


def least_context(sparse: SparseSpec) -> int:
    """Tokens from which a context has a needle's place that is neither forced nor left for want of others."""
    forced = sparse.init_blocks + sparse.local_blocks + 1
    blocks = sparse.topk + 2 * forced + 4
    means = COARSE * (sparse.kernel_size + sparse.kernel_stride)
    return max(blocks * sparse.block_size + 4 * sparse.kernel_size, max(0, sparse.dense_len) + means) + 2


def check_context(sparse: SparseSpec, context: int) -> None:
    """Raise `BadOption` for a context in which everything is seen, or one that is longer than any model's."""
    least = least_context(sparse)
    if not least <= context <= MOST_CONTEXT:
        what = "short" if context < least else "long"
        raise BadOption(
            f"a context of {context:,} tokens is too {what} for the needle probe of this sparse_config",
            hint=f"--context from {least} to {MOST_CONTEXT}",
        )


def why_not(spec: ModelSpec) -> str | None:
    """Why the probe says nothing of such a model; None where it does."""
    sparse = spec.sparse
    assert sparse is not None
    if spec.head_dim < LEAST_HEAD_DIM:
        return f"heads of {spec.head_dim} channels have none that RoPE leaves alone"
    if sparse.topk - sparse.init_blocks - 1 < sparse.kernel_size // sparse.block_size + 2:
        # A mean is one of two blocks at least, and what is equal is chosen as it comes.
        return f"topk {sparse.topk} leaves too few blocks to be chosen by their scores"
    return None


def probes(sparse: SparseSpec, context: int, seed: int) -> list[Probe]:
    """The contexts, with depths drawn by `seed`; raises what `check_context` raises."""
    check_context(sparse, context)
    draw, last, block = np.random.default_rng(seed), context - 1, sparse.block_size
    first = (sparse.init_blocks + 1) * block + sparse.kernel_size
    end = last - (sparse.local_blocks + 2) * block - 2 * sparse.kernel_size
    found = [Probe("open", int(depth), False, True) for depth in sorted(draw.integers(first, end, NEEDLES))]
    found.append(Probe("in a shroud", int(draw.integers(first, end)), True, False))
    if sparse.init_blocks:
        found.append(Probe("in a shroud, in a first block", int(draw.integers(sparse.init_blocks * block)), True, True))
    near = max(1, (sparse.local_blocks - 1) * block // 2)  # within the window of every variant
    found.append(Probe("in a shroud, in the window", last - 1 - int(draw.integers(near)), True, True))
    return [*found, Probe("none", None, False, False)]


def context_ids(sparse: SparseSpec, probe: Probe, context: int, seed: int) -> list[int]:
    """The token ids of a context, the question last."""
    ids = np.random.default_rng([seed, 1]).integers(WORDS, size=context)
    if probe.depth is not None:
        if probe.shrouded:
            block = probe.depth // sparse.block_size
            reach = sparse.kernel_size
            ids[max(0, block * sparse.block_size - reach) : (block + 1) * sparse.block_size + reach] = SHROUD
        ids[probe.depth] = NEEDLE
    ids[-1] = QUESTION
    return [int(token) for token in ids]


def needle_model(spec: ModelSpec, context: int, seed: int) -> Checkpoint:
    """The model of one block, with the head shape and `sparse_config` of `spec`, in memory."""
    sparse = spec.sparse
    assert sparse is not None
    made = ModelSpec(
        architecture="minicpm",
        vocab_size=WORDS + 4,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=1e-6,
        max_position_embeddings=context,
        rope=RopeSpec(theta=THETA, kind="default"),
        scale_emb=1.0,
        residual_scale=1.0,
        logit_divisor=1.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        sparse=sparse,
    )
    arrays = _weights(made, sparse, min(context, (sparse.topk + sparse.local_blocks + 1) * sparse.block_size), seed)
    scalars = {"scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": HIDDEN, "sparse_config": asdict(sparse)}
    return Checkpoint(
        path=Path("needle"),
        format="hf",
        config=architecture("minicpm").config(made, scalars),
        spec=made,
        weights={name: _view(name, values) for name, values in arrays.items()},
        files={},
        inputs=(),
    )


def _weights(spec: ModelSpec, sparse: SparseSpec, attended: int, seed: int) -> dict[str, np.ndarray]:
    """Weights of every slot. Channels of the stream: random words in the first ones, then one for each token."""
    draw = np.random.default_rng([seed, 2])
    heads, groups, channels = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    words, size = HIDDEN - 4, float(np.sqrt(HIDDEN))
    embedding = np.zeros((WORDS + 4, HIDDEN))
    embedding[:WORDS, :words] = draw.standard_normal((WORDS, words))
    embedding[WORDS:, words:] = np.eye(4) * size  # all have this norm after the first RMS norm
    d, taken = _still_directions(groups, channels, draw), _directions(groups, channels, draw)
    key = CLEAR * sparse.kernel_size**0.5
    query = (np.log(attended) + LEAD) * channels**0.5 / key
    by_role = {
        Role.Q: draw.standard_normal((heads, channels, HIDDEN)) / size,
        Role.K: draw.standard_normal((groups, channels, HIDDEN)) / size,
        Role.V: draw.standard_normal((groups, channels, HIDDEN)) / size,
    }
    question, needle, shroud, answer = range(words, HIDDEN)
    by_role[Role.Q][..., question] = query / size * np.repeat(d, heads // groups, axis=0)
    by_role[Role.K][..., needle] = key / size * d
    by_role[Role.K][..., shroud] = -2 * CLEAR / sparse.kernel_size**0.5 / size * d
    by_role[Role.V][..., needle] = channels**0.5 / size * taken
    out = np.zeros((HIDDEN, heads, channels))
    out[answer] = 3 * size / (heads * channels**0.5) * np.repeat(taken, heads // groups, axis=0)
    arrays: dict[str, np.ndarray] = {EMBEDDING: embedding}
    for slot in spec.slots():
        if slot.role in by_role:
            arrays[slot.name] = by_role[slot.role].reshape(slot.shape)
        elif slot.role is Role.O:
            arrays[slot.name] = out.reshape(slot.shape)
        elif slot.role in NORM_ROLES:
            arrays[slot.name] = np.ones(slot.shape)
        elif slot.name != EMBEDDING:
            arrays[slot.name] = np.zeros(slot.shape)  # the MLP adds nothing
    return {slot.name: arrays[slot.name].astype(np.float32) for slot in spec.slots()}


def _directions(groups: int, channels: int, draw: np.random.Generator) -> np.ndarray:
    """A unit vector for each group, (G, D)."""
    vectors = draw.standard_normal((groups, channels))
    units: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units


def _still_directions(groups: int, channels: int, draw: np.random.Generator) -> np.ndarray:
    """The same, in the last quarter of the pairs, which RoPE turns by less than 1e-7 for each token."""
    half = channels // 2
    still = np.arange(channels) % half >= 3 * half // 4
    vectors = _directions(groups, channels, draw) * still
    units: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units


def _view(name: str, values: np.ndarray) -> TensorView:
    return TensorView(name, values.dtype, values.shape, lambda start, stop: values[start:stop])


@dataclass(frozen=True, slots=True)
class NeedleFindings:
    """depths: of the open needles. problems: what was seen and must not be, or the other way round."""

    depths: tuple[int, ...]
    problems: tuple[str, ...]


def answers(session: Session, ids: list[int]) -> bool:
    """Whether a session answers the question, which it decodes after the context."""
    session.next_logits(ids[:-1])
    return int(np.argmax(session.next_logits(ids))) == ANSWER


def probed(
    oracle: SparseOracle,
    spec: ModelSpec,
    context: int,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> NeedleFindings:
    """Probe the sparse reference with heads and `sparse_config` of `spec`.

    Raises:
        What `check_context` raises.
    """
    sparse = spec.sparse
    assert sparse is not None
    planned = probes(sparse, context, seed)
    model, problems, last = needle_model(spec, context, seed), [], context - 1
    for number, probe in enumerate(planned):
        if progress is not None:
            progress(f"needle {number + 1} of {len(planned)}", number, len(planned))
        chosen: dict[int, np.ndarray] = {}

        def observe(layer: int, group: int, first: int, rows: np.ndarray, kept: dict[int, np.ndarray] = chosen) -> None:
            if first + len(rows) == last + 1:
                kept[group] = rows[-1]

        with oracle.watched(model, observer=observe) as session:
            answered = answers(session, context_ids(sparse, probe, context, seed))
        problems += _problems(probe, answered, chosen, sparse, spec.num_key_value_heads)
    depths = tuple(probe.depth for probe in planned if probe.depth is not None and not probe.shrouded)
    return NeedleFindings(depths, tuple(problems))


def answer_problems(session: Session, sparse: SparseSpec, context: int, *, seed: int = 0) -> list[str]:
    """What is wrong with the answers of any session that runs `needle_model`, whatever it tells of its blocks."""
    found = []
    for probe in probes(sparse, context, seed):
        found += _answer_problems(probe, answers(session, context_ids(sparse, probe, context, seed)))
    return found


def _answer_problems(probe: Probe, answered: bool) -> list[str]:
    if answered and not probe.answered:
        return [f"{probe.what} changes the output, and must not"]
    return [f"{probe.what} does not change the output"] if probe.answered and not answered else []


def _problems(
    probe: Probe, answered: bool, chosen: Mapping[int, np.ndarray], sparse: SparseSpec, groups: int
) -> list[str]:
    """What is wrong with one probe."""
    problems = []
    if probe.depth is not None and not probe.shrouded:
        block = probe.depth // sparse.block_size
        for group in range(groups):
            if group not in chosen or not chosen[group][block]:
                problems.append(f"{probe.what} is not among the blocks that key-value head {group} chose")
    return problems + _answer_problems(probe, answered)

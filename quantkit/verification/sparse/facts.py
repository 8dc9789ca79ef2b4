"""What a model does on a prompt that is long enough to be attended to sparsely, and what rounding does to that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import BadOption, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.progress import Progress
from quantkit.verification.metrics import kl_by_position
from quantkit.verification.sparse.choices import Choices, Watch, deviations
from quantkit.verification.sparse.oracle import SparseOracle
from quantkit.verification.steps.limits import (
    FACTOR,
    INT8_NOISE,
    INT8_RUN,
    at_least_scaled,
    noise,
    noise_limits,
)
from quantkit.verification.steps.logit_facts import facts_of

ROWS = 64
"""Positions of the prompt that are compared."""
BEYOND = 33
"""Tokens of the prompt beyond the length from which attention is sparse: an odd number, more than a kernel."""
MOST_TOKENS = 1 << 20
SEED = 20250630
SCORE_FACTOR = 12.0
"""How many times as far as scores move on average two must lie apart to decide; 7.3 was the most that honest artifacts
of random models in 8, 4, 3 and 2 bits moved one."""
SWAP_FACTOR = 4.0
"""The same of the largest difference, where near-ties fell otherwise; 2.8 was the most."""
LEAST_BOUND = 1e-5
"""What float32 may do to the logarithm of a score in another order of additions."""


@dataclass(frozen=True, slots=True, eq=False)
class SparsePrompt:
    """token_ids: drawn at random, the same ones every time. positions: those that are compared, in rising order."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SparseFacts:
    """What the original does on a long prompt, V logits at P positions; see `Choices`.

    variant: as which code it attended. sparse: by which `sparse_config`. rounded: KL at each position of what is
    predicted with inputs rounded to int8. deviations: what that does to the logarithms of scores of each layer, see
    `quantkit.verification.sparse.choices.deviations`.
    """

    variant: str
    sparse: SparseSpec
    prompt: SparsePrompt
    logits: np.ndarray
    rounded: np.ndarray
    deviations: np.ndarray
    choices: Choices

    def bounds(self, squared_error: float, spec: ModelSpec) -> list[tuple[float, float]]:
        """How far apart scores of each layer must lie to decide (`compared_lists`) in an artifact whose weights have
        this squared relative error: logarithms of scores move in proportion to its root, but for a token that attends
        to another block, which moves as far as with any error."""
        share = float(np.sqrt((squared_error + noise("float32", spec)) / INT8_NOISE))
        return [
            (max(SCORE_FACTOR * share * mean, LEAST_BOUND), SWAP_FACTOR * max(1.0, share) * largest)
            for mean, largest in self.deviations.tolist()
        ]

    def limit(self, squared_error: float, spec: ModelSpec, *, swapped: bool) -> float:
        """Largest KL from the original of such an artifact.

        swapped: whether near-ties of blocks fell otherwise. The chance of that grows with the error, and what it costs
        does not depend on it, so the KL grows with the error as well, not with its square alone.
        """
        whole = squared_error + noise("float32", spec)
        moved = max(whole, INT8_NOISE * (whole / INT8_NOISE) ** 0.5) if swapped else whole
        facts = facts_of([self.logits])
        return at_least_scaled(noise_limits([self.rounded], facts, moved, FACTOR), facts, moved)[0]


def sparse_prompt(spec: ModelSpec, oracle: SparseOracle) -> SparsePrompt:
    """A prompt whose last tokens attend to a part of it only, as far as the model's context allows.

    Raises:
        BadOption: the context is too short for anything to be left out.
    """
    sparse = spec.sparse
    assert sparse is not None
    seen = (sparse.topk + sparse.local_blocks) * sparse.block_size
    begin = oracle.sparse_from(sparse)
    length = min(max(begin, seen + seen // 4) + BEYOND, spec.max_position_embeddings - 1)
    if length < begin or length <= seen:
        raise BadOption(
            f"a context of {spec.max_position_embeddings} tokens is too short for sparse attention: it begins with "
            f"{begin} tokens, and up to {seen} are all seen",
            hint="verify it with dense attention",
        )
    if length > MOST_TOKENS:
        raise BadOption(
            f"attention is sparse from {begin:,} tokens on; {MOST_TOKENS:,} is the most that a prompt here may have",
            hint="verify it with dense attention",
        )
    ids = np.random.default_rng(SEED).integers(spec.vocab_size, size=length)
    spread = np.linspace(min(seen, begin), length - 1, ROWS // 2).astype(int)
    positions = sorted({*spread.tolist(), *range(max(0, length - ROWS // 2), length)})
    return SparsePrompt(tuple(map(int, ids)), tuple(positions))


def with_sparse(checkpoint: Checkpoint, sparse: SparseSpec) -> Checkpoint:
    """The same weights, attending by `sparse`."""
    return replace(checkpoint, spec=replace(checkpoint.spec, sparse=sparse))


def observed(
    checkpoint: Checkpoint, prompt: SparsePrompt, oracle: SparseOracle, *, rounds: bool, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray | None, Watch]:
    """Logits [P, V] at the prompt's positions, those with inputs rounded to int8 if `rounds`, and what was chosen."""
    spec = checkpoint.spec
    assert spec.sparse is not None
    blocks = prompt.positions[-1] // spec.sparse.block_size + 1
    watch = Watch(spec.num_hidden_layers, spec.num_key_value_heads, prompt.positions, blocks)
    with oracle.watched(checkpoint, observer=watch.observer, scored=watch.scored) as session:
        (answer,) = session.predictions(
            [prompt.token_ids],
            int8_run=INT8_RUN if rounds else None,
            progress=progress,
            positions=prompt.positions,
        )
    return answer.exact, answer.rounded, watch


def sparse_facts(model: Checkpoint, oracle: SparseOracle, *, progress: Progress | None = None) -> SparseFacts:
    """The facts of an original.

    Raises:
        UnsupportedModel: its config says nothing of sparse attention. BadOption: its context is too short for it.
    """
    if model.spec.sparse is None:
        raise UnsupportedModel(
            f"{model.path}: its config.json has no sparse_config, so that it has no sparse attention to verify",
            hint="leave --attention sparse out",
        )
    prompt = sparse_prompt(model.spec, oracle)
    logits, rounded, watch = observed(model, prompt, oracle, rounds=True, progress=progress)
    assert rounded is not None
    return SparseFacts(
        variant=oracle.variant,
        sparse=model.spec.sparse,
        prompt=prompt,
        logits=logits,
        rounded=kl_by_position(logits, rounded),
        deviations=deviations(watch.exact, watch.rounded),
        choices=watch.exact,
    )


def differences(expected: SparseSpec, found: SparseSpec) -> list[str]:
    """One line for every number of two `sparse_config`s that differs."""
    return [
        f"sparse_config: {name} is {getattr(found, name)}, the original's is {getattr(expected, name)}"
        for name in expected.__slots__
        if getattr(found, name) != getattr(expected, name)
    ]

"""Running the artifact: the reference against the original, the engine against both.

The reference runs all prompts at once, layer by layer, and its logits are kept for the engine only; each is compared
and let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from quantkit import registry
from quantkit.errors import EngineFailed
from quantkit.models.architectures.minicpm3 import with_norms_of
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec
from quantkit.progress import Progress
from quantkit.protocols import OracleSession, Predictions, Runtime, Session
from quantkit.verification.engines import ORACLE
from quantkit.verification.golden import Golden
from quantkit.verification.metrics import kl_by_position
from quantkit.verification.prompts import Prompt
from quantkit.verification.report import Check, Comparison, Divergence
from quantkit.verification.steps.limits import (
    ENGINE_FACTOR,
    FACTOR,
    INT8_RUN,
    INT8_RUNS,
    at_least_scaled,
    noise,
    noise_limits,
    prediction_limits,
)
from quantkit.verification.steps.logit_facts import LogitFacts, facts_of, float16_cost
from quantkit.verification.steps.tracing import engine_divergence, first_position

FLOAT16 = "float16"
"""The arithmetic (`quantkit.protocols.Runtime`) whose logits are float16, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Trusted:
    """What the original predicts: logits of each prompt, and the largest KL that the artifact may have on each."""

    logits: Sequence[np.ndarray]
    limits: Sequence[float]


def recorded(golden: Golden, squared_error: float, count: int) -> Trusted:
    """From a golden file's first `count` prompts, for an artifact whose weights have this squared relative error."""
    facts = [LogitFacts.of(golden.logits[index]) for index in range(min(count, len(golden.prompts)))]
    return Trusted(golden.logits, prediction_limits(golden.rounding, squared_error, facts, golden.spec))


def computed(model: Checkpoint, prompts: Sequence[Prompt], squared_error: float, progress: Progress | None) -> Trusted:
    """From the original itself, by the reference."""
    logits, rounded = [], []
    for answer in predicted(model.path, prompts, int8_run=INT8_RUN, progress=progress):
        assert answer.rounded is not None
        logits.append(answer.exact)
        rounded.append(kl_by_position(answer.exact, answer.rounded))
    facts, whole = facts_of(logits), squared_error + noise("float32", model.spec)
    return Trusted(logits, at_least_scaled(noise_limits(rounded, facts, whole, FACTOR), facts, whole))


def predicted(
    path: Path, prompts: Sequence[Prompt], *, int8_run: int | None, progress: Progress | None
) -> Iterator[Predictions]:
    """What the reference predicts on each prompt."""
    ids = [prompt.token_ids for prompt in prompts]
    with registry.runtime(ORACLE).open(path) as session:
        oracle = cast(OracleSession, session)
        yield from oracle.predictions(ids, int8_run=int8_run, progress=progress)


class DenseOracle(Protocol):
    """What the reference runtime can do beyond `Runtime`: run a checkpoint that lies nowhere as it is."""

    def dense(self, checkpoint: Checkpoint) -> OracleSession:
        """A session."""
        ...


def with_original_norms(checkpoint: Checkpoint, prompts: Sequence[Prompt], original: ModelSpec) -> Iterator[np.ndarray]:
    """What the artifact would predict with what the original's norms of latents add; nothing where it adds the same.

    Containers whose engines take another number for that (`LatentSpec.norm_eps`) are no less the original for it.
    """
    spec = with_norms_of(checkpoint.spec, original)
    if spec == checkpoint.spec:
        return
    with cast(DenseOracle, registry.runtime(ORACLE)).dense(replace(checkpoint, spec=spec)) as session:
        for answer in session.predictions([prompt.token_ids for prompt in prompts], int8_run=None):
            yield answer.exact


@dataclass(slots=True, eq=False)
class Answers:
    """What the reference said: logits where an engine is to be held to them, and KL of int8 inputs by position."""

    exact: list[np.ndarray] = field(default_factory=list)
    rounded: list[np.ndarray] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    """The largest KL from the original on each prompt, with room for what other norms of latents cost."""
    comparisons: list[Comparison] = field(default_factory=list)
    divergence: tuple[int, int] | None = None
    """Prompt and position at which it first leaves the original."""


def ask_reference(
    path: Path,
    prompts: Sequence[Prompt],
    trusted: Trusted | None,
    *,
    arithmetic: str | None,
    progress: Progress | None,
    otherwise: Iterator[np.ndarray] | None = None,
) -> Answers:
    """Run the artifact in the reference and compare it with the original, if there is one.

    arithmetic: of the engine that will be held to it, None where none will. otherwise: `with_original_norms`.
    """
    answers = Answers()
    run = INT8_RUNS.get(arithmetic, INT8_RUN) if arithmetic is not None else None
    for index, answer in enumerate(predicted(path, prompts, int8_run=run, progress=progress)):
        if answer.rounded is not None:
            answers.exact.append(answer.exact)
            answers.rounded.append(kl_by_position(answer.exact, answer.rounded))
        if trusted is not None:
            wanted, limit = trusted.logits[index], trusted.limits[index]
            as_original = next(otherwise, None) if otherwise is not None else None
            if as_original is not None:
                limit = both_limits(limit, float(kl_by_position(as_original, answer.exact).mean()))
            answers.limits.append(limit)
            found = Comparison.of(prompts[index].name, wanted, answer.exact, limit)
            answers.comparisons.append(found)
            if not found.passed and answers.divergence is None:
                answers.divergence = index, first_position(wanted, answer.exact, limit)
    return answers


def both_limits(one: float, other: float) -> float:
    """The KL that two causes may have together: its root is a distance."""
    return float((one**0.5 + other**0.5) ** 2)


@dataclass(frozen=True, slots=True)
class EngineFindings:
    """problems: what is wrong beside the checks. checks: the engine against the reference, and the original.

    notes: what a user of this engine should know, and is no fault of the artifact.
    """

    problems: tuple[str, ...]
    checks: tuple[Check, ...]
    divergence: Divergence | None
    notes: tuple[str, ...] = ()


def ask_engine(
    runtime: Runtime,
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    answers: Answers,
    *,
    texts: Sequence[Prompt],
    trusted: Trusted | None,
    progress: Progress | None,
) -> EngineFindings:
    """Run the artifact in the engine; it is held to the reference by its own arithmetic, and to the original by that
    and the artifact's limits together. `texts`: the prompts that its own tokenizer must read as recorded.

    Raises:
        MissingDependency: the engine is not installed.
    """
    arithmetic = runtime.arithmetic(checkpoint)
    stored = [float16_cost(logits) for logits in answers.exact] if arithmetic == FLOAT16 else None
    error = noise(arithmetic, checkpoint.spec)
    limits = noise_limits(answers.rounded, facts_of(answers.exact), error, ENGINE_FACTOR, stored)
    near, far = [], []
    problems: list[str] = []
    notes: list[str] = []
    divergence = None
    total = sum(len(prompt.token_ids) for prompt in prompts)
    done = 0
    try:
        with runtime.open(checkpoint.path) as session:
            problems += tokenizer_problems(session, runtime.name, texts)
            notes += tokenizer_notes(session, runtime.name, texts)
            for index, prompt in enumerate(prompts):
                if progress is not None:
                    progress(f"{runtime.name}: {prompt.name}", done, total)
                logits = session.logits(prompt.token_ids)
                done += len(prompt.token_ids)
                near.append(Comparison.of(prompt.name, answers.exact[index], logits, limits[index]))
                if trusted is not None:
                    both = both_limits(limits[index], answers.limits[index])
                    far.append(Comparison.of(prompt.name, trusted.logits[index], logits, both))
                if not near[-1].passed and divergence is None:
                    place = first_position(answers.exact[index], logits, limits[index])
                    divergence = engine_divergence(
                        session, checkpoint.path, prompt, place, engine=runtime.name, arithmetic=arithmetic
                    )
    except EngineFailed as error:
        problems.append(str(error))
    checks = [Check(f"{runtime.name} against {ORACLE}", "kl", None, tuple(near))] if near else []
    checks += [Check(f"{runtime.name} against original", "kl", None, tuple(far))] if far else []
    return EngineFindings(tuple(problems), tuple(checks), divergence, tuple(notes))


def tokenizer_problems(session: Session, name: str, prompts: Sequence[Prompt]) -> list[str]:
    """One line for each prompt that an engine with a tokenizer of its own reads otherwise."""
    tokenize = getattr(session, "tokenize", None)
    if tokenize is None:
        return []
    problems = []
    for prompt in (prompt for prompt in prompts if prompt.text):
        ids = tokenize(prompt.text, add_special=True, parse_special=True)
        common = min(len(ids), len(prompt.token_ids))
        if tuple(ids[:common]) != prompt.token_ids[:common]:
            problems.append(f"{name} reads the text of prompt {prompt.name!r} as other tokens")
    return problems


def tokenizer_notes(session: Session, name: str, prompts: Sequence[Prompt]) -> list[str]:
    """What an engine says whose own tokenizer is known to read otherwise, and which is given ids for that reason."""
    read = getattr(session, "own_token_ids", None)
    texts = [prompt for prompt in prompts if prompt.text]
    if read is None or not texts:
        return []
    other = []
    for prompt in texts:
        ids = read(prompt.text, add_special=True)
        common = min(len(ids), len(prompt.token_ids))
        other += [prompt.name] if tuple(ids[:common]) != prompt.token_ids[:common] else []
    told = f": {', '.join(other)}" if other else ""
    return [
        f"{name} was given ids; its own tokenizer, told to put BOS first, reads {len(other)} of {len(texts)} "
        f"prompts as other tokens{told}"
    ]

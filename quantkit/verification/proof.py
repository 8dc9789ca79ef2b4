"""The proof: an artifact still is the model that it was made from, and the engine computes what the artifact says.

    1. every file is the one that its manifest describes
    2. the container reads strictly
    3. the reference runtime on the artifact predicts what the original predicted
    4. the real engine on the artifact predicts what the reference predicts on it, and what the original predicted

Step 3 accuses the artifact, step 4 the engine. Float32 artifacts are judged by their largest difference of a
log-probability, all others by their mean KL divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import check_files
from quantkit.errors import BadOption, GoldenMismatch
from quantkit.files.source_file import SourceFile
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import OracleSession, Runtime
from quantkit.tensors.views import QuantizedView, TensorView
from quantkit.text.tokenizer import open_tokenizer
from quantkit.verification.engines import ORACLE, choose_engine, real_engine
from quantkit.verification.golden import Golden, model_facts
from quantkit.verification.prompts import Prompt, default_prompts
from quantkit.verification.report import Check, Comparison, Divergence, Report

MAX_KL = 0.05
"""Largest mean KL from the original that a quantized artifact may have unless the user says otherwise, in nats."""

QUANTIZED = "quantized"

DENSE_LIMITS = {
    "float32": ("max_abs_log_prob_difference", 1e-3),
    "float16": ("kl", 2e-6),
    "bfloat16": ("kl", 1e-4),
}
"""What decides about a dense artifact, and the largest value that passes, by the coarsest dtype of its matrices.

Engines round the inputs of float16 and bfloat16 matrices to that dtype. On a trained model that alone moves single
log-probabilities far down the tail by 1e-2 and 8e-2 (the reference with rounded inputs agrees with llama.cpp on that)
while the KL divergence stays at 2e-7 and 1e-5; the limits are ten times these. A model read wrongly is far beyond them:
leaving out the LongRoPE factors, the mildest error known, costs 1e-3."""

ENGINE_FACTOR = 2.0
"""An engine's mean KL from the reference on a quantized artifact, over that of the reference with inputs rounded to
int8 from itself, may be at most this. llama.cpp's integer kernels show 1.0 on every type. Being relative, the bound is
as strict on a model that hardly moves as on one that moves a lot."""

STAGE_LIMITS = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, QUANTIZED: 0.5}
"""Relative error from which a stage of the forward pass counts as diverged."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, steps done, steps in all."""


def verify(
    path: Path,
    *,
    golden: Golden | None = None,
    against: Path | None = None,
    engine: str = "auto",
    max_kl: float = MAX_KL,
    progress: Progress | None = None,
) -> Report:
    """Verify the artifact `path`.

    Args:
        path: a folder or a single file.
        golden: the original's recorded logits; its prompts are used.
        against: the original itself. Without `golden` the reference runtime computes its logits; either way it is
            traced to find where a wrong artifact leaves it.
        engine: "auto" = the first real engine that is installed and knows the model; "reference" = none but the oracle.
        max_kl: largest mean KL from the original for a quantized artifact, in nats.
        progress: told before each prompt.

    Raises:
        VerificationFailed: a file is missing, truncated or changed.
        BadOption: nothing to compare with: neither an original nor a real engine.
        GoldenMismatch: `golden` or `against` is of another model.
        MissingDependency, EngineFailed: the engine is not there, or refuses the artifact.
        Everything that reading raises.
    """
    notes = check_files(path)
    checkpoint = registry.open_checkpoint(path)
    precision = precision_of(checkpoint)
    runtime = _engine(engine, checkpoint)
    notes += _caveats(engine, runtime, checkpoint, compared=golden is not None or against is not None)
    prompts = _prompts(checkpoint, golden, against)
    runs = 1 + (golden is None and against is not None)
    if runtime is not None:
        runs += 1 + (precision == QUANTIZED)
    asked = _Predictions(prompts, runs, progress)
    own = asked.oracle(path)
    original = golden.logits if golden is not None else asked.oracle(against) if against is not None else None
    limit = _dense_limit(precision) or _Limit("kl", max_kl)
    checks = []
    if original is not None:
        checks.append(_check(f"{ORACLE} against original", prompts, original, own, limit))
    divergence = None
    if against is not None and not checks[0].passed:
        divergence = _locate(checks[0], prompts, path, against, STAGE_LIMITS[precision])
    if runtime is not None:
        ran = asked.engine(runtime, path)
        noise = _dense_limit(precision) or _noise_limit(prompts, own, asked.oracle(path, rounded=True))
        checks.append(_check(f"{runtime.name} against {ORACLE}", prompts, own, ran, noise))
        if original is not None:
            checks.append(_check(f"{runtime.name} against original", prompts, original, ran, limit))
    return Report(
        path=str(path),
        format=checkpoint.format,
        precision=precision,
        engine=runtime.name if runtime is not None else None,
        checks=tuple(checks),
        divergence=divergence,
        notes=(*notes, *checkpoint.notes),
    )


def precision_of(checkpoint: Checkpoint) -> str:
    """`QUANTIZED`, or the coarsest dtype of a dense artifact's matrices: "float32", "float16" or "bfloat16".

    A container may hold fewer bits than the dtype its weights are read in (GGUF blocks with a minimum read as
    floats), so the size of the files counts, too.
    """
    views = checkpoint.weights.values()
    if any(isinstance(view, QuantizedView) for view in views):
        return QUANTIZED
    dense = [view for view in views if isinstance(view, TensorView)]
    stored = sum(SourceFile.open(path).size for path in checkpoint.inputs)
    if checkpoint.inputs and stored < sum(view.nbytes for view in dense):
        return QUANTIZED
    dtypes = {str(view.dtype) for view in dense if len(view.shape) == 2}
    return next(name for name in reversed(DENSE_LIMITS) if name in dtypes)


def _engine(name: str, checkpoint: Checkpoint) -> Runtime | None:
    """The real engine to ask, None for the oracle alone."""
    if name == "auto":
        return real_engine(checkpoint)
    runtime = choose_engine(name, checkpoint)
    return None if runtime.name == ORACLE else runtime


def _caveats(engine: str, runtime: Runtime | None, checkpoint: Checkpoint, *, compared: bool) -> list[str]:
    """What the verdict will not say; raises `BadOption` when it would say nothing."""
    if runtime is None and not compared:
        raise BadOption(f"{checkpoint.path}: nothing to compare with", hint="give --golden FILE or --against MODEL")
    notes = []
    if runtime is None and engine == "auto":
        notes.append(f"no engine that runs this {checkpoint.spec.architecture} in {checkpoint.format} is installed")
    if not compared:
        notes.append("neither golden logits nor the original given; engine and reference only agree with each other")
    return notes


def _prompts(checkpoint: Checkpoint, golden: Golden | None, against: Path | None) -> Sequence[Prompt]:
    """The golden file's prompts, or the bundled ones; refuses an original of another model."""
    spec, source = checkpoint.spec, checkpoint
    if against is not None:
        source = registry.open_checkpoint(against)
        facts, others = model_facts(spec), model_facts(source.spec)
        for fact, value in facts.items():
            if others[fact] != value:
                raise GoldenMismatch(f"{checkpoint.path}: {fact} is {value}, that of {against} is {others[fact]}")
    if golden is not None:
        golden.check_model(spec, where=str(checkpoint.path))
        return golden.prompts
    return default_prompts(open_tokenizer(source), max_tokens=spec.max_position_embeddings)


class _Predictions:
    """Runs all prompts through an engine, and counts."""

    def __init__(self, prompts: Sequence[Prompt], runs: int, progress: Progress | None) -> None:
        self._prompts = prompts
        self._total = runs * len(prompts)
        self._done = 0
        self._progress = progress

    def oracle(self, path: Path, *, rounded: bool = False) -> list[np.ndarray]:
        """Logits [T, V] of every prompt by the reference runtime, with inputs rounded to int8 if wanted."""
        with registry.runtime(ORACLE).open(path) as session:
            oracle = cast(OracleSession, session)
            if not rounded:
                return self._ask(ORACLE, oracle.logits)
            ids = [prompt.token_ids for prompt in self._prompts]
            return [cast(np.ndarray, predicted.rounded) for predicted in oracle.predictions(ids, rounded=True)]

    def engine(self, runtime: Runtime, path: Path) -> list[np.ndarray]:
        """Logits [T, V] of every prompt."""
        with runtime.open(path) as session:
            return self._ask(runtime.name, session.logits)

    def _ask(self, name: str, logits: Callable[[Sequence[int]], np.ndarray]) -> list[np.ndarray]:
        answers = []
        for prompt in self._prompts:
            if self._progress is not None:
                self._progress(f"{name}: {prompt.name}", self._done, self._total)
            answers.append(logits(prompt.token_ids))
            self._done += 1
        return answers


@dataclass(frozen=True, slots=True)
class _Limit:
    """What decides, and the largest value that passes."""

    measure: str
    value: float


def _dense_limit(precision: str) -> _Limit | None:
    """The limit of a dense artifact; None for a quantized one."""
    return None if precision == QUANTIZED else _Limit(*DENSE_LIMITS[precision])


def _noise_limit(prompts: Sequence[Prompt], exact: Sequence[np.ndarray], rounded: Sequence[np.ndarray]) -> _Limit:
    """How far from the reference an engine with integer arithmetic may be: see `ENGINE_FACTOR`."""
    return _Limit("kl", ENGINE_FACTOR * _check("rounding", prompts, exact, rounded, _Limit("kl", 0.0)).kl)


def _check(
    name: str,
    prompts: Sequence[Prompt],
    trusted: Sequence[np.ndarray],
    tested: Sequence[np.ndarray],
    limit: _Limit,
) -> Check:
    compared = zip(prompts, trusted, tested, strict=True)
    comparisons = tuple(Comparison.of(prompt.name, p, q) for prompt, p, q in compared)
    return Check(name, limit.measure, limit.value, comparisons)


def _locate(check: Check, prompts: Sequence[Prompt], path: Path, against: Path, limit: float) -> Divergence:
    """Trace artifact and original on the prompt that differs most, and name the first stage that is off."""
    worst = max(range(len(prompts)), key=lambda i: check.comparisons[i].kl)
    mine, theirs = (_trace(one, prompts[worst]) for one in (path, against))
    errors = {
        stage: float(np.linalg.norm(mine[stage] - expected) / np.linalg.norm(expected))
        for stage, expected in theirs.items()
    }
    return Divergence(prompts[worst].name, first_divergence(errors, limit), errors)


def first_divergence(errors: Mapping[str, float], limit: float) -> str:
    """The first stage whose relative error is above `limit` (or NaN); if there is none, the one where it grows most."""
    for stage, error in errors.items():
        if not error <= limit:
            return stage
    values = [0.0, *errors.values()]
    growth = {stage: values[i + 1] - values[i] for i, stage in enumerate(errors)}
    return max(growth, key=lambda stage: growth[stage])


def _trace(path: Path, prompt: Prompt) -> Mapping[str, np.ndarray]:
    with registry.runtime(ORACLE).open(path) as session:
        return cast(OracleSession, session).trace(prompt.token_ids)

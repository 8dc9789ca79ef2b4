"""The steps of a verification in order, and what they found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.artifacts.manifest import check_files, manifest_path, read_manifest
from quantkit.errors import BadOption, QuantkitError, VerificationFailed
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_length
from quantkit.models.folding import folded
from quantkit.models.precision import precision_of
from quantkit.models.spec import ModelSpec
from quantkit.progress import Progress, unwatched
from quantkit.protocols import Runtime
from quantkit.text.vocabulary import has_vocabulary
from quantkit.verification.engines import NO_ENGINE, ORACLE, engine_of
from quantkit.verification.golden import Golden
from quantkit.verification.original import Original, same_files
from quantkit.verification.prompts import DRAWN, Prompt, prompts_for
from quantkit.verification.recording import has_original, is_quantized
from quantkit.verification.report import FAILED, PASSED, SKIPPED, STEPS, Check, Divergence, Report, Step
from quantkit.verification.steps import predictions
from quantkit.verification.steps.identity import (
    comparable_prompts,
    expected_spec,
    read_facts,
    spec_differences,
    text_differences,
    token_differences,
)
from quantkit.verification.steps.numbers import WeightCheck, parent_problems, read_record
from quantkit.verification.steps.tracing import artifact_divergence

PARTS = 1000
"""Parts that the whole work is counted in."""
NOTHING_PROVED = "a model proves nothing about itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What may be chosen about a verification.

    engine: "auto" = the first real engine that is installed and knows the model, else the reference alone;
    "reference" = no other; "none" = nothing is run.
    max_kl: largest mean KL from the original over all prompts, in nats, on top of the limits of each prompt.
    prompts: only so many, the first ones. needs_manifest: whether an artifact without a manifest fails.
    variant, context: of sparse attention, see `quantkit.verification.proof.verify`.
    """

    engine: str = "auto"
    max_kl: float | None = None
    prompts: int | None = None
    needs_manifest: bool = True
    variant: str | None = None
    context: int = 32768


class Proof:
    """One verification: its steps in order, and what they found.

    order: the steps. alone: whether an artifact that is compared with nothing can be verified at all.
    """

    order: tuple[str, ...] = STEPS
    alone = False

    def __init__(
        self, path: Path, golden: Golden | None, against: Path | None, options: VerifyOptions, progress: Progress | None
    ) -> None:
        self._path, self._golden, self._against, self._options = path, golden, against, options
        self._tell = progress or unwatched
        self._steps: list[Step] = []
        self._notes: list[str] = []
        self._texts: Sequence[Prompt] = ()
        self._divergence: Divergence | None = None
        self._squared_error = 0.0
        self._given_quantized = False
        self._manifest: Mapping[str, Any] | None = None

    def report(self) -> Report:
        """Go through the steps."""
        self._check_manifest()
        try:
            checkpoint = registry.open_checkpoint(self._path)
        except QuantkitError as error:
            self._add("identity", [f"it cannot be read: {error}"], "")
            return self._finished(None, None, None)
        original = self._original()
        runtime = self._engine(checkpoint, original)
        if original is None and runtime is None and not self.alone:
            raise BadOption(f"{self._path}: nothing to compare with", hint="give --golden FILE or --against MODEL")
        prompts = self._prompts(checkpoint, original)
        self._texts = prompts
        self._check_identity(checkpoint, original, runtime, prompts)
        self._check_numbers(checkpoint, original)
        if self._options.engine == NO_ENGINE or self._failed:
            if self._failed:
                self._trace(checkpoint, original, prompts, (0, None))
        else:
            self._run(checkpoint, original, runtime, prompts)
        return self._finished(checkpoint, original, runtime)

    def _engine(self, checkpoint: Checkpoint, original: Original | None) -> Runtime | None:
        """The engine that is to run it."""
        runtime = engine_of(self._options.engine, checkpoint)
        if runtime is None and self._options.engine == "auto":
            kind = f"{checkpoint.spec.architecture} in {checkpoint.format}"
            self._notes.append(f"no engine that runs this {kind} is installed")
        return runtime

    @property
    def _failed(self) -> str | None:
        return next((step.name for step in self._steps if step.status == FAILED), None)

    def _add(self, name: str, problems: Sequence[str], says: str, checks: Sequence[Check] = ()) -> None:
        failed = bool(problems) or not all(check.passed for check in checks)
        if failed:
            says = problems[0] if problems else f"{next(check.name for check in checks if not check.passed)}: too far"
        self._steps.append(Step(name, FAILED if failed else PASSED, says, tuple(problems[1:]), tuple(checks)))

    def _skip(self, name: str, why: str) -> None:
        self._steps.append(Step(name, SKIPPED, why))

    def _finished(self, checkpoint: Checkpoint | None, original: Original | None, runtime: Runtime | None) -> Report:
        done = {step.name: step for step in self._steps}
        why = "as was asked for" if self._failed is None else f"because {self._failed} failed"
        steps = tuple(done.get(name) or Step(name, SKIPPED, f"not done, {why}") for name in self.order)
        self._tell("done", PARTS, PARTS)
        return Report(
            path=str(self._path),
            format=checkpoint.format if checkpoint is not None else "unreadable",
            precision=precision_of(checkpoint) if checkpoint is not None else "unknown",
            engine=runtime.name if runtime is not None and "engine" in done else None,
            compared=None if original is None else "parent" if original.parent else "original",
            steps=steps,
            divergence=self._divergence,
            notes=(*self._notes, *(checkpoint.notes if checkpoint is not None else ())),
        )

    def _check_manifest(self) -> None:
        self._tell("files", 0, PARTS)
        problems: list[str] = []
        says = "as the manifest has them"
        try:
            self._manifest = read_manifest(self._path)
            if self._manifest is None and self._options.needs_manifest:
                where = manifest_path(self._path).name
                problems = [f"there is no manifest ({where}); --no-manifest verifies what has none"]
            elif self._manifest is None:
                self._skip("files", "not checked: there is no manifest")
                return
            else:
                self._notes += check_files(self._path, self._manifest)
        except QuantkitError as error:
            problems = [str(error) if isinstance(error, VerificationFailed) else f"the manifest is damaged: {error}"]
        self._add("files", problems, says)

    def _original(self) -> Original | None:
        model = registry.open_checkpoint(self._against) if self._against is not None else None
        self._given_quantized = model is not None and is_quantized(model)
        if self._golden is not None:
            return Original(self._golden.spec, self._golden.text, self._golden, model, parent=False)
        if model is not None:
            return Original(model.spec, read_facts(model), None, model, parent=self._given_quantized)
        self._notes.append(
            "neither golden logits nor the original given; engine and reference only agree with each other"
        )
        return None

    def _prompts(self, checkpoint: Checkpoint, original: Original | None) -> Sequence[Prompt]:
        if self._golden is not None:
            recorded = self._golden.prompts[: self._options.prompts]
            self._notes += [] if any(prompt.text for prompt in recorded) else [DRAWN]
            for prompt in recorded:
                check_length(self._golden.spec, len(prompt.token_ids), to_come=1, what=f"prompt {prompt.name!r}")
            return recorded
        source = original.model if original is not None and original.model is not None else checkpoint
        if (self._options.engine == NO_ENGINE or self._failed) and not has_vocabulary(source):
            return ()
        made, note = prompts_for(source, checkpoint.spec)
        self._notes += [note] if note is not None else []
        return made[: self._options.prompts]

    def _check_identity(
        self, checkpoint: Checkpoint, original: Original | None, runtime: Runtime | None, prompts: Sequence[Prompt]
    ) -> None:
        if original is None:
            self._skip("identity", "no original was given")
            return
        problems = [*self._self_problems(checkpoint, original, runtime)]
        problems += spec_differences(expected_spec(original.spec, checkpoint.spec), checkpoint.spec)
        problems += self._attention_differences(checkpoint, original)
        found = read_facts(checkpoint)
        if not isinstance(original.text, str):
            problems += [found] if isinstance(found, str) else text_differences(original.text, found)
            if not isinstance(found, str) and original.text.vocabulary is not None and found.vocabulary is not None:
                self._texts, told = comparable_prompts(checkpoint, prompts, original.text, found)
                self._notes += told
                problems += token_differences(checkpoint, self._texts)
        whose = (
            "the original's" if checkpoint.spec.architecture == original.spec.architecture else "the folded original's"
        )
        self._add("identity", problems, f"scalars, tokens, template and end tokens are {whose}")

    def _attention_differences(self, checkpoint: Checkpoint, original: Original) -> Sequence[str]:
        """What a spec says of attention beside what specs are compared by; dense attention has nothing."""
        return ()

    def _self_problems(self, checkpoint: Checkpoint, original: Original, runtime: Runtime | None) -> list[str]:
        """Why the comparison would prove nothing; notes where it proves less than it seems to."""
        if original.golden is not None and original.golden.quantized:
            return [f"the golden file was recorded from a quantized model: {NOTHING_PROVED}"]
        source = original.golden.source if original.golden is not None else None
        if not same_files(checkpoint, original.model, source):
            return []
        same_place = original.model is not None and original.model.path.resolve() == checkpoint.path.resolve()
        made = self._manifest is not None  # of another model, so it is not the original itself
        if made or has_original(checkpoint, self._manifest) or (same_place and source is None and runtime is None):
            return [f"its weights are the very files that it is compared with: {NOTHING_PROVED}"]
        self._notes.append("its weights are the original's own files: this proves the engine, not a conversion")
        return []

    def _check_numbers(self, checkpoint: Checkpoint, original: Original | None) -> None:
        if original is not None and _shapes(expected_spec(original.spec, checkpoint.spec)) != _shapes(checkpoint.spec):
            self._skip("numbers", "its tensors have other names or shapes than the original's")
            return
        record = read_record(self._manifest, checkpoint.spec)
        weights = original.weights(checkpoint.spec) if original is not None else None
        check = WeightCheck(checkpoint, record, weights, parent=original is not None and original.parent)
        part = self._part(*(0, PARTS) if self._options.engine == NO_ENGINE else (0, PARTS // 10))
        total, done = sum(view.size for view in checkpoint.weights.values()), 0
        problems: list[str] = []
        try:
            for slot in check.slots():
                done += checkpoint.weights[slot.name].size
                part(f"numbers: {slot.name}", done, total)
            findings = check.findings()
            self._squared_error, problems = findings.squared_error, findings.problems
            problems += self._parent_problems(checkpoint, original)
            told = f"{findings.dense} dense and {findings.quantized} quantized tensors"
        except QuantkitError as error:
            problems, told = [f"a tensor cannot be read: {error}"], ""
        whose = "as recorded" if original is None else "its parent's" if original.parent else "the original's"
        self._add("numbers", problems, f"{told} are {whose}")

    def _parent_problems(self, checkpoint: Checkpoint, original: Original | None) -> list[str]:
        model = original.model if original is not None else None
        if model is None or not self._given_quantized:
            return []
        parent = folded(model) if model.spec.architecture != checkpoint.spec.architecture else model
        return [problem for problem in parent_problems(checkpoint, parent) if problem is not None]

    def _run(
        self, checkpoint: Checkpoint, original: Original | None, runtime: Runtime | None, prompts: Sequence[Prompt]
    ) -> None:
        """The reference and the engine on all prompts."""
        computes = original is not None and original.golden is None
        ends = [100, 400 if computes else 100, 700 if runtime is not None else PARTS, PARTS]
        trusted = None
        if original is not None and original.golden is not None:
            trusted = predictions.recorded(original.golden, self._squared_error, len(prompts))
        elif original is not None and original.model is not None:
            part = self._part(ends[0], ends[1])
            trusted = predictions.computed(original.model, prompts, self._squared_error, part)
        arithmetic = runtime.arithmetic(checkpoint) if runtime is not None else None
        try:
            answers = predictions.ask_reference(
                self._path,
                prompts,
                trusted,
                arithmetic=arithmetic,
                progress=self._part(ends[1], ends[2]),
                otherwise=predictions.with_original_norms(checkpoint, prompts, original.spec) if original else None,
            )
        except QuantkitError as error:
            self._add("predictions", [f"the reference cannot run it: {error}"], "")
            return
        if trusted is None:
            self._skip("predictions", "no original was given")
        else:
            check = Check(f"{ORACLE} against original", "kl", self._options.max_kl, tuple(answers.comparisons))
            self._add("predictions", (), "the reference predicts what the original predicts", [check])
            if not check.passed:
                self._trace(checkpoint, original, prompts, answers.divergence or (0, None))
        if runtime is None:
            self._skip("engine", "no engine was run")
        elif self._failed is None:
            found = predictions.ask_engine(
                runtime,
                checkpoint,
                prompts,
                answers,
                texts=self._texts,
                trusted=trusted,
                progress=self._part(ends[2], ends[3]),
            )
            self._divergence, self._notes = found.divergence, [*self._notes, *found.notes]
            self._add("engine", found.problems, f"{runtime.name} predicts what the reference predicts", found.checks)

    def _trace(
        self,
        checkpoint: Checkpoint,
        original: Original | None,
        prompts: Sequence[Prompt],
        place: tuple[int, int | None],
    ) -> None:
        if original is not None and original.model is not None and prompts and self._options.engine != NO_ENGINE:
            index, position = place
            self._divergence = artifact_divergence(
                checkpoint.path, original.model.path, prompts[index], position, precision_of(checkpoint)
            )

    def _part(self, start: int, stop: int) -> Progress:
        """Progress of a part of the whole work, from `start` to `stop` of its `PARTS`."""
        return lambda what, done, total: self._tell(what, start + (stop - start) * done // max(1, total), PARTS)


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {slot.name: slot.shape for slot in spec.slots()}

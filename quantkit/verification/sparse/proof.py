"""The proof of an artifact that attends sparsely.

files, identity, numbers   as ever (`quantkit.verification.proof`); identity holds `sparse_config` to the original's
predictions  on a long prompt, of the sparse reference, at positions that attend to a part of it
blocks       which blocks they chose, wherever scores decide it; near-ties are left to `predictions`
needle       the sparse path itself, with the model's head shape and `sparse_config` (`needle.py`)
engine       where the container attends sparsely by itself: the engine against the sparse reference, decoding
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.errors import BadOption, EngineFailed, GoldenMismatch, QuantkitError, UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import SparseSpec
from quantkit.protocols import ExportOptions, Runtime, Session
from quantkit.verification.engines import NO_ENGINE, ORACLE, engine_of
from quantkit.verification.metrics import kl_by_position
from quantkit.verification.original import Original
from quantkit.verification.prompts import Prompt
from quantkit.verification.report import Check, Comparison
from quantkit.verification.sparse import needle
from quantkit.verification.sparse.choices import compared_lists
from quantkit.verification.sparse.facts import SparseFacts, differences, observed, sparse_facts, with_sparse
from quantkit.verification.sparse.oracle import SPARSE, SparseOracle, sparse_oracle
from quantkit.verification.steps.limits import ENGINE_FACTOR, INT8_NOISE, noise, noise_limits
from quantkit.verification.steps.logit_facts import facts_of
from quantkit.verification.steps.sequence import Proof

STEPS = ("files", "identity", "numbers", "predictions", "blocks", "needle", "engine")
PROMPT = "long"
DECODED = 8
"""Tokens that an engine decodes behind the prompt."""


class SparseProof(Proof):
    """One verification of sparse attention; see the module's docstring."""

    order = STEPS
    alone = True

    def _oracle(self) -> SparseOracle:
        recorded = self._golden.sparse if self._golden is not None else None
        return sparse_oracle(self._options.variant or (recorded.variant if recorded is not None else None))

    def _engine(self, checkpoint: Checkpoint, original: Original | None) -> Runtime | None:
        """The engine, if the container attends sparsely by itself; refuses what cannot be verified at all."""
        sparse = self._sparse(checkpoint, original)
        if sparse is None:
            raise UnsupportedModel(
                f"{checkpoint.path}: neither it nor its original has a sparse_config: there is no sparse attention",
                hint="leave --attention sparse out",
            )
        self._check_recording(original)
        if needle.why_not(with_sparse(checkpoint, sparse).spec) is None:
            needle.check_context(sparse, self._options.context)
        name = self._options.engine
        if checkpoint.attention == SPARSE:
            return engine_of(name, checkpoint)
        if name not in ("auto", ORACLE, NO_ENGINE):
            raise BadOption(
                f"{name} attends densely to {checkpoint.format}", hint=f"--engine {ORACLE}, or leave --attention out"
            )
        return None

    def _check_recording(self, original: Original | None) -> None:
        """Raise `GoldenMismatch` where a golden file does not hold what this needs, and no model stands in for it."""
        if self._golden is None or (original is not None and original.model is not None):
            return
        facts, variant = self._golden.sparse, self._oracle().variant
        hint = f"record it again from the original: quantkit golden MODEL --attention sparse --variant {variant}"
        if facts is None:
            raise GoldenMismatch("the golden file has nothing of sparse attention", hint=hint)
        if facts.variant != variant:
            raise GoldenMismatch(f"the golden file was recorded as {facts.variant}, not {variant}", hint=hint)

    def _sparse(self, checkpoint: Checkpoint, original: Original | None) -> SparseSpec | None:
        """By what it must attend: as its original does, else as it says itself."""
        recorded = self._golden.sparse if self._golden is not None else None
        if recorded is not None:
            return recorded.sparse
        own = checkpoint.spec.sparse
        return original.spec.sparse or own if original is not None else own

    def _attention_differences(self, checkpoint: Checkpoint, original: Original) -> Sequence[str]:
        expected, found = self._sparse(checkpoint, original), checkpoint.spec.sparse
        if found is None:
            self._notes.append("its container says nothing of sparse attention; the original's sparse_config was used")
            return ()
        return differences(expected, found) if expected is not None else ()

    def _facts(self, original: Original) -> SparseFacts:
        """What the original does: recorded, or else by the reference."""
        recorded = original.golden.sparse if original.golden is not None else None
        oracle = self._oracle()
        if recorded is not None and recorded.variant == oracle.variant:
            return recorded
        assert original.model is not None
        return sparse_facts(original.model, oracle, progress=self._part(100, 450))

    def _run(
        self, checkpoint: Checkpoint, original: Original | None, runtime: Runtime | None, prompts: Sequence[Prompt]
    ) -> None:
        """The sparse reference on the long prompt and on needles, and the engine on the former."""
        sparse = self._sparse(checkpoint, original)
        assert sparse is not None
        model, oracle = with_sparse(checkpoint, sparse), self._oracle()
        facts = self._facts(original) if original is not None else None
        if facts is None:
            self._skip("predictions", "no original was given")
            self._skip("blocks", "no original was given")
        else:
            self._check_predictions(model, facts, oracle)
        self._check_needle(model, oracle)
        if runtime is None:
            attends = "no engine was run" if checkpoint.attention == SPARSE else "engines attend densely to this"
            self._skip("engine", attends)
        elif self._failed is None:
            self._check_engine(model, runtime, oracle, facts)

    def _check_predictions(self, model: Checkpoint, facts: SparseFacts, oracle: SparseOracle) -> None:
        try:
            logits, _, watch = observed(model, facts.prompt, oracle, rounds=False, progress=self._part(450, 850))
        except QuantkitError as error:
            self._add("predictions", [f"the reference cannot run it: {error}"], "")
            return
        found = compared_lists(
            facts.choices, watch.exact, facts.bounds(self._squared_error, model.spec), facts.prompt.positions
        )
        limit = facts.limit(self._squared_error, model.spec, swapped=found.same < found.lists)
        check = Check(
            f"sparse {ORACLE} ({oracle.variant}) against original",
            "kl",
            self._options.max_kl,
            (Comparison.of(PROMPT, facts.logits, logits, limit),),
        )
        told = f"{len(facts.prompt.positions)} positions of a prompt of {len(facts.prompt.token_ids):,} tokens"
        self._add("predictions", (), f"at {told} the reference predicts what the original predicts", [check])
        self._add("blocks", found.problems, found.line)

    def _check_needle(self, model: Checkpoint, oracle: SparseOracle) -> None:
        context = self._options.context
        excuse = needle.why_not(model.spec)
        if excuse is not None:
            self._skip("needle", excuse)
            return
        found = needle.probed(oracle, model.spec, context, progress=self._part(850, 950))
        depths = ", ".join(f"{depth:,}" for depth in found.depths)
        told = f"keys planted at tokens {depths} of {context:,} are chosen and answered, hidden ones where they must be"
        self._add("needle", found.problems, told)

    def _check_engine(
        self, model: Checkpoint, runtime: Runtime, oracle: SparseOracle, facts: SparseFacts | None
    ) -> None:
        facts = facts or sparse_facts(model, oracle, progress=self._part(100, 850))
        logits, rounded, _ = observed(model, facts.prompt, oracle, rounds=True, progress=None)
        assert rounded is not None
        error = noise(runtime.arithmetic(model), model.spec)
        moved = max(error, INT8_NOISE * (error / INT8_NOISE) ** 0.5)  # a near-tie of blocks may fall otherwise
        kl = kl_by_position(logits, rounded)
        (limit,) = noise_limits([kl], facts_of([logits]), moved, ENGINE_FACTOR)
        problems: list[str] = []
        checks: list[Check] = []
        try:
            with oracle.watched(model) as session:
                wanted = _decoded(session, facts.prompt.token_ids)
            with runtime.open(model.path) as session:
                found = _decoded(session, facts.prompt.token_ids)
            problems += self._engine_needles(model, runtime)
            near = Comparison.of(f"{PROMPT}, decoded", wanted, found, limit)
            checks.append(Check(f"{runtime.name} against sparse {ORACLE}", "kl", None, (near,)))
        except EngineFailed as failure:
            problems.append(str(failure))
        self._add("engine", problems, f"{runtime.name} predicts what the sparse reference predicts", checks)

    def _engine_needles(self, model: Checkpoint, runtime: Runtime) -> list[str]:
        """Needles in the engine, in the container of the artifact, in a context as short as they can be hidden in."""
        sparse = model.spec.sparse
        assert sparse is not None
        if needle.why_not(model.spec) is not None:
            return []
        context = needle.least_context(sparse)
        made = needle.needle_model(model.spec, context, 0)
        with TemporaryDirectory(prefix="quantkit-needle-") as folder:
            planned = registry.exporter(model.format).prepare(made, ExportOptions(attention=SPARSE))
            with runtime.open(publish(planned, Path(folder) / "needle").path) as session:
                found = needle.answer_problems(session, sparse, context)
        return [f"{runtime.name}: {problem}" for problem in found]


def _decoded(session: Session, ids: Sequence[int]) -> np.ndarray:
    """Logits [DECODED + 1, V] after the prompt but its last tokens, and after each of these."""
    return np.stack([session.next_logits(ids[:length]) for length in range(len(ids) - DECODED, len(ids) + 1)])

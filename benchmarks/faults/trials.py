"""Running trials: what `verify` says to an artifact, and the cells of the table that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

from benchmarks.faults.engine import Misled
from benchmarks.faults.fault import Fault, Inputs, NotApplicable, Refused, Trial
from benchmarks.faults.workbench import Variant, Workbench
from quantkit.registry import runtime
from quantkit.verification import proof
from quantkit.verification.proof import verify
from quantkit.verification.report import FAILED

NOTHING, REFERENCE, MISLED = "none", "reference", "llama-cpp"
"""Engines of `verify`: none, the oracle alone, and the one that is given a wrong file."""
PASSED, REFUSED = "passed", "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one trial.

    step: where `verify` stopped, PASSED, REFUSED where nobody writes it, or None where the change changed nothing.

    detail: the line that it said.
    """

    trial: Trial
    step: str | None
    detail: str

    @property
    def right(self) -> bool:
        """Whether it was caught in a step that is meant for it, or changed nothing."""
        return self.step in (None, REFUSED, *self.trial.steps)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault in one variant; `reason` says why it makes no sense there, and then there are no outcomes."""

    fault: str
    variant: Variant
    outcomes: tuple[Outcome, ...]
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether every trial was caught as it should."""
        return all(outcome.right for outcome in self.outcomes)

    def problems(self) -> Iterator[str]:
        """One line for each trial that went wrong."""
        for outcome in self.outcomes:
            if not outcome.right:
                trial = outcome.trial
                yield (
                    f"{self.variant}: {self.fault}: {trial.way.value}, against the {trial.proof.value}: "
                    f"{outcome.step}, meant for {' or '.join(trial.steps)}  {outcome.detail}"
                )

    def __str__(self) -> str:
        if not self.outcomes:
            return "-"
        steps = dict.fromkeys("no change" if outcome.step is None else outcome.step for outcome in self.outcomes)
        return ("" if self.right else "! ") + ", ".join(steps)


def cell(bench: Workbench, fault: Fault, variant: Variant) -> Cell:
    """Try one fault in one variant."""
    try:
        outcomes = tuple(Outcome(trial, *said_to_wrong(bench, inputs)) for trial, inputs in bench.wrong(fault, variant))
    except NotApplicable as reason:
        return Cell(fault.name, variant, (), str(reason))
    return Cell(fault.name, variant, outcomes)


def said_to_wrong(bench: Workbench, inputs: Inputs | Refused | None) -> tuple[str | None, str]:
    """As `said`; None where nothing changed.

    Nothing is run where reading alone tells, so that no time is spent on tracing where the forward passes part.
    """
    if inputs is None:
        return None, ""
    if isinstance(inputs, Refused):
        return REFUSED, inputs.reason
    if inputs.engine_reads is None:
        step, line = said(bench, inputs, NOTHING)
        return (step, line) if step != PASSED else said(bench, inputs, REFERENCE)
    misled = Misled(runtime(MISLED), inputs.engine_reads)
    with patch.object(proof, "engine_of", lambda name, checkpoint: misled):
        return said(bench, inputs, MISLED)


def said(bench: Workbench, inputs: Inputs, engine: str) -> tuple[str, str]:
    """The step at which `verify` stops, and its line."""
    golden = bench.golden_of(inputs.golden) if inputs.golden is not None else None
    report = verify(inputs.path, golden=golden, against=inputs.against, engine=engine)
    failed = next((step for step in report.steps if step.status == FAILED), None)
    return (failed.name, failed.says) if failed is not None else (PASSED, "")


def alarms(
    bench: Workbench, honest: Iterable[tuple[str, Inputs]], engine: str = REFERENCE
) -> Iterator[tuple[str, str]]:
    """Each honest artifact that is tried, with what was said against it; nothing when it was verified."""
    for name, inputs in honest:
        step, detail = said(bench, inputs, engine)
        yield name, "" if step == PASSED else f"{step}: {detail}"

"""What a verification found: pure data, with a JSON object and lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from quantkit.artifacts.manifest import plain
from quantkit.verification.metrics import compared

STEPS = ("files", "identity", "numbers", "predictions", "engine")
"""The steps of a verification, in order."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt: how far the predictions under test lie from the trusted ones; see `quantkit.verification.metrics`.

    limit: the largest KL that passes; None = it is only shown.
    """

    prompt: str
    positions: int
    kl: float
    top1: float
    max_abs_log_prob_difference: float
    lost_lead: float
    same_next_token: bool
    limit: float | None = None

    @classmethod
    def of(cls, prompt: str, trusted: np.ndarray, tested: np.ndarray, limit: float | None = None) -> Comparison:
        """Compare logits [T, V] on the prompt of this name."""
        (agreement,) = compared(trusted, tested)
        return cls(prompt, len(trusted), **asdict(agreement), limit=limit)

    @property
    def passed(self) -> bool:
        """Whether the KL is within the prompt's limit; one that is NaN is not."""
        return self.limit is None or self.kl <= self.limit


@dataclass(frozen=True, slots=True)
class Check:
    """Two sets of predictions compared over all prompts.

    name: who was compared with whom, "reference against original".
    measure: a figure over all prompts that decides as well, "kl" or "max_abs_log_prob_difference".
    limit: the largest that passes; None = the prompts' own limits alone decide.
    """

    name: str
    measure: str
    limit: float | None
    comparisons: tuple[Comparison, ...]

    @property
    def kl(self) -> float:
        """Mean KL over all positions of all prompts, in nats."""
        return self._mean([comparison.kl for comparison in self.comparisons])

    @property
    def top1(self) -> float:
        """Share of all positions with the same most likely token."""
        return self._mean([comparison.top1 for comparison in self.comparisons])

    @property
    def max_abs_log_prob_difference(self) -> float:
        """The largest over all prompts."""
        return self._largest([comparison.max_abs_log_prob_difference for comparison in self.comparisons])

    @property
    def lost_lead(self) -> float:
        """The largest over all prompts."""
        return self._largest([comparison.lost_lead for comparison in self.comparisons])

    @property
    def same_next_tokens(self) -> int:
        """Prompts after which the most likely token is the same."""
        return sum(comparison.same_next_token for comparison in self.comparisons)

    @property
    def value(self) -> float:
        """The figure that decides."""
        return self.kl if self.measure == "kl" else self.max_abs_log_prob_difference

    @property
    def passed(self) -> bool:
        """Whether every prompt is within its limit, and the deciding figure within its own; one that is NaN is not."""
        return all(x.passed for x in self.comparisons) and (self.limit is None or self.value <= self.limit)

    @property
    def nearest(self) -> Comparison | None:
        """The prompt that lies nearest to its limit, or farthest beyond; None where none has a limit."""
        limited = [(x.kl / max(x.limit, 1e-300), x) for x in self.comparisons if x.limit is not None]
        undefined = [x for ratio, x in limited if np.isnan(ratio)]
        return undefined[0] if undefined else max(limited, key=lambda pair: pair[0])[1] if limited else None

    def _largest(self, values: list[float]) -> float:
        return float(np.max(values))  # unlike Python's max, it does not lose a NaN

    def _mean(self, values: list[float]) -> float:
        positions = [comparison.positions for comparison in self.comparisons]
        return sum(v * n for v, n in zip(values, positions, strict=True)) / sum(positions)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where two forward passes part, on one prompt.

    of, from_: whose pass leaves whose, "artifact" and "original", or an engine and "reference".
    position: the first whose KL is above the prompt's limit; None where predictions were not compared.
    stage: see `first_divergence`; None where the pass could not be traced.
    relative_errors: ||A - O|| / ||O|| of every stage in order.
    """

    of: str
    from_: str
    prompt: str
    position: int | None
    stage: str | None
    relative_errors: Mapping[str, float]

    def line(self) -> str:
        """One line of text."""
        place = f" from token {self.position} on" if self.position is not None else ""
        stage = (
            f", first in {self.stage} ({self.relative_errors[self.stage]:.2g} off)" if self.stage is not None else ""
        )
        return f"first divergence: {self.of} leaves {self.from_} on prompt {self.prompt!r}{place}{stage}"


def first_divergence(errors: Mapping[str, float], limit: float) -> str | None:
    """The first stage whose relative error is above `limit`, or NaN; None where no stage's is.

    This is what a divergence is, everywhere. Errors add up from stage to stage, so that one within the limit tells
    nothing about the stage at which it is found.
    """
    return next((stage for stage, error in errors.items() if not error <= limit), None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a verification.

    name: one of `STEPS`. status: "passed", "failed" or "skipped". says: what was found, or why it was skipped.
    problems: one line for each thing that is wrong. checks: predictions that were compared in it.
    """

    name: str
    status: str
    says: str
    problems: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    def lines(self) -> list[str]:
        """The step as text."""
        mark = {PASSED: "ok  ", FAILED: "FAIL", SKIPPED: "-   "}[self.status]
        lines = [f"{mark} {self.name}: {self.says}"]
        lines += [f"     {problem}" for problem in self.problems[:SHOWN_PROBLEMS]]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"     and {len(self.problems) - SHOWN_PROBLEMS} more")
        return [*lines, *(f"     {_line(check)}" for check in self.checks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict on an artifact and everything that it rests on.

    precision: "float32", "float16", "bfloat16" or "quantized".
    engine: the real engine that ran it, None when none did.
    compared: what it was held to, "original", "parent" (the quantized model that it was exported from) or None.
    """

    path: str
    format: str
    precision: str
    engine: str | None
    compared: str | None
    steps: tuple[Step, ...]
    divergence: Divergence | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether no step failed."""
        return self.failed is None

    @property
    def failed(self) -> Step | None:
        """The first step that failed."""
        return next((step for step in self.steps if step.status == FAILED), None)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything that was compared, in order."""
        return tuple(check for step in self.steps for check in step.checks)

    @property
    def verdict(self) -> str:
        """What was proved, in a few words; it names the engine that ran, or says that none did."""
        if self.failed is not None:
            return f"FAILED at {self.failed.name}"
        if self.compared is None:
            return f"whole, and {self.engine or 'the reference'} runs it; compared with no original"
        subject = "verified" if self.compared == "original" else "verified against its parent"
        if self.engine is not None:
            return f"{subject}, run in {self.engine}"
        proved = "files and numbers verified" if self.compared == "original" else "files and numbers are its parent's"
        return f"{proved}, not run in any engine"

    def to_json(self) -> dict[str, Any]:
        """A JSON object: every field, with the verdict and each check's sums added; NaN becomes null."""
        steps = [{**asdict(step), "checks": [_check_to_json(check) for check in step.checks]} for step in self.steps]
        data: dict[str, Any] = plain(  # type: ignore[assignment]
            {
                **asdict(self),
                "passed": self.passed,
                "verdict": self.verdict,
                "failed": self.failed.name if self.failed is not None else None,
                "steps": steps,
            }
        )
        return data

    def lines(self) -> list[str]:
        """The report as text, the verdict last."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [line for step in self.steps for line in step.lines()]
        if self.divergence is not None:
            lines.append(self.divergence.line())
        return [*lines, f"{self.path}: {self.verdict} ({self.format}, {self.precision})"]


def _check_to_json(check: Check) -> dict[str, Any]:
    return {
        **asdict(check),
        "kl": check.kl,
        "top1": check.top1,
        "max_abs_log_prob_difference": check.max_abs_log_prob_difference,
        "lost_lead": check.lost_lead,
        "same_next_tokens": check.same_next_tokens,
        "passed": check.passed,
    }


def _line(check: Check) -> str:
    limit = f" (limit {check.limit:.0e})" if check.limit is not None else ""
    near = check.nearest
    nearest = f"; nearest to its limit {near.prompt!r}, {near.kl:.2e} of {near.limit:.2e}" if near is not None else ""
    lost = f" (where not, it led by at most {check.lost_lead:.1e})" if check.top1 < 1 else ""
    return (
        f"{'ok  ' if check.passed else 'FAIL'} {check.name}: KL {check.kl:.2e}{limit}{nearest}; "
        f"max |Δ log-prob| {check.max_abs_log_prob_difference:.2e}; "
        f"top-1 equal at {check.top1:.2%} of positions{lost} "
        f"and after {check.same_next_tokens} of {len(check.comparisons)} prompts"
    )

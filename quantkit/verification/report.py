"""What a verification found: pure data, with a JSON object and lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np

from quantkit.artifacts.manifest import plain
from quantkit.verification.metrics import compared


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt: how far the predictions under test lie from the trusted ones; see `quantkit.verification.metrics`."""

    prompt: str
    positions: int
    kl: float
    top1: float
    max_abs_log_prob_difference: float
    lost_lead: float
    same_next_token: bool

    @classmethod
    def of(cls, prompt: str, trusted: np.ndarray, tested: np.ndarray) -> Comparison:
        """Compare logits [T, V] on the prompt of this name."""
        (agreement,) = compared(trusted, tested)
        return cls(prompt, len(trusted), *astuple(agreement))


@dataclass(frozen=True, slots=True)
class Check:
    """Two sets of predictions compared over all prompts.

    name: who was compared with whom, "reference against golden".
    measure: the figure that decides, "kl" or "max_abs_log_prob_difference". limit: the largest that passes.
    """

    name: str
    measure: str
    limit: float
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
        """Whether the deciding figure is within its limit; one that is NaN is not."""
        return self.value <= self.limit

    def _largest(self, values: list[float]) -> float:
        return float(np.max(values))  # unlike Python's max, it does not lose a NaN

    def _mean(self, values: list[float]) -> float:
        positions = [comparison.positions for comparison in self.comparisons]
        return sum(v * n for v, n in zip(values, positions, strict=True)) / sum(positions)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the artifact's forward pass leaves the original's.

    stage: the first that lies further off than its predecessors explain. relative_errors: ||A - O|| / ||O|| of every
    stage in order, A of the artifact and O of the original, on the prompt that differs most.
    """

    prompt: str
    stage: str
    relative_errors: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict on an artifact and everything that it rests on.

    precision: "float32", "float16", "bfloat16" or "quantized"; decides which limits hold.
    engine: the real engine that ran it, None when only the reference did.
    """

    path: str
    format: str
    precision: str
    engine: str | None
    checks: tuple[Check, ...]
    divergence: Divergence | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: every field, with the verdict and each check's sums added; NaN becomes null."""
        checks = [
            {
                **asdict(check),
                "kl": check.kl,
                "top1": check.top1,
                "max_abs_log_prob_difference": check.max_abs_log_prob_difference,
                "lost_lead": check.lost_lead,
                "same_next_tokens": check.same_next_tokens,
                "passed": check.passed,
            }
            for check in self.checks
        ]
        data: dict[str, Any] = plain({**asdict(self), "passed": self.passed, "checks": checks})  # type: ignore[assignment]
        return data

    def lines(self) -> list[str]:
        """The report as text, the verdict last."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [_line(check) for check in self.checks]
        if self.divergence is not None:
            error = self.divergence.relative_errors[self.divergence.stage]
            lines.append(
                f"first divergence: {self.divergence.stage}, {error:.1%} off on prompt {self.divergence.prompt!r}"
            )
        verdict = "verified" if self.passed else "FAILED"
        return [*lines, f"{self.path}: {verdict} ({self.format}, {self.precision})"]


def _line(check: Check) -> str:
    figures = {
        "kl": f"KL {check.kl:.2e}",
        "max_abs_log_prob_difference": f"max |Δ log-prob| {check.max_abs_log_prob_difference:.2e}",
    }
    decides = f"{figures.pop(check.measure)} (limit {check.limit:.0e})"
    lost = f" (where not, it led by at most {check.lost_lead:.1e})" if check.top1 < 1 else ""
    return (
        f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {', '.join((decides, *figures.values()))}; "
        f"top-1 equal at {check.top1:.2%} of positions{lost} "
        f"and after {check.same_next_tokens} of {len(check.comparisons)} prompts"
    )

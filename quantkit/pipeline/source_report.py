"""What a run says about each source of its calibration text: how much error is left, with it and without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from quantkit.calibration.samples import Coverage
from quantkit.pipeline.text_fitness import result_warnings
from quantkit.protocols import TensorReport

MUCH = 2.0
"""A source that has lost so many times as much as the median of the others is named."""


def source_reports(
    coverage: Coverage, tensors: Mapping[str, TensorReport], divergences: Sequence[float | None] | None
) -> dict[str, Any]:
    """Coverage as the manifest has it, with a KL for each source, the errors of folds, and notes about both.

    left_out: by what was left out, the mean over layers of the error of codes that were chosen without it, and of the
    codes as they are (`TensorReport`).
    """
    found = coverage.to_json()
    for source, kl in zip(found["sources"], divergences or [None] * len(found["sources"]), strict=True):
        source["kl"] = kl
    found["left_out"] = _left_out(tensors)
    found["notes"] = [*coverage.notes, *_far_off({one["name"]: one["kl"] for one in found["sources"]})]
    found["warnings"] = [*coverage.warnings, *result_warnings(tensors)]
    return found


def _left_out(tensors: Mapping[str, TensorReport]) -> dict[str, dict[str, float]]:
    pairs: dict[str, list[tuple[float, float]]] = {}
    for report in tensors.values():
        if report.left_out is not None and report.error_without is not None and report.error_with is not None:
            pairs.setdefault(report.left_out, []).append((report.error_without, report.error_with))
    return {
        name: {"error_without": fmean(one for one, _ in found), "error_with": fmean(one for _, one in found)}
        for name, found in sorted(pairs.items())
    }


def _far_off(divergences: Mapping[str, float | None]) -> Iterator[str]:
    known = {name: kl for name, kl in divergences.items() if kl is not None}
    for name, kl in known.items():
        others = [other for each, other in known.items() if each != name]
        if others and kl > MUCH * median(others):
            yield (
                f"{name} has lost {kl / median(others):.1f} times as much as the other calibration text "
                f"(KL {kl:.1e}): give more text of its kind"
            )

"""Whether calibration text serves its purpose: before the run by its amount, after it by text that was left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from statistics import fmean

from quantkit.calibration.folds import folds_of
from quantkit.calibration.samples import Samples
from quantkit.protocols import TensorReport

NO_BETTER = 0.95
"""A share of the error of round-to-nearest from which on there is nothing to speak of gained."""


def amount_warnings(samples: Samples, widths: Collection[int]) -> Iterator[str]:
    """What is wrong with sequences that layers with inputs of `widths` channels are to be calibrated on."""
    tokens, widest = samples.coverage.tokens, max(widths, default=0)
    if tokens < widest:
        yield (
            f"the calibration text is too short: {tokens:,} tokens do not determine layers that read {widest:,} "
            "channels; give more text, or leave --only-files out"
        )
    if len(set(folds_of(samples))) == 1:
        yield (
            "the calibration text is too short to leave a part of it out: nothing tells whether the result is better "
            "than rounding to nearest; compare it with --method rtn by quantkit verify"
        )


def result_warnings(tensors: Mapping[str, TensorReport]) -> Iterator[str]:
    """What is wrong with the result, measured on text that was left out of the choice of codes."""
    pairs = [
        (report.error_without, report.rounding_without)
        for report in tensors.values()
        if report.error_without is not None and report.rounding_without is not None
    ]
    if not pairs:
        return
    error, rounding = fmean(one for one, _ in pairs), fmean(one for _, one in pairs)
    if error >= NO_BETTER * rounding:
        lost = sum(report.fallback is not None for report in tensors.values())
        yield (
            "THE RESULT IS NO BETTER THAN ROUNDING TO NEAREST: on text left out of the calibration the error of layers "
            f"is {error:.2e}, that of rounding {rounding:.2e}, and {lost} of {len(tensors)} layers were rounded; give "
            "other or more calibration text, or leave --only-files out"
        )

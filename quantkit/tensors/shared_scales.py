"""One factor for several numbers that are stored as its integer multiples: the d of a super-block's scales."""

from __future__ import annotations

import numpy as np

SHARES = tuple(np.linspace(0.86, 1.06, 11))
"""Factors tried, of the one that reaches the largest number."""
LEAST = 2.0**-24
"""The smallest float16."""


def nearest_multiples(
    wanted: np.ndarray, least: int, most: int, *, never_zero: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the multiples that come nearest to `wanted`, by the sum of squares.

    Args:
        wanted: float64 [n, count], finite; not negative where `least` is 0.
        least, most: of the multiples. Where `least` is negative, the factor takes the sign that turns the largest
            number to that side, which reaches further.
        never_zero: no multiple is 0, so that it can still grow.

    Returns:
        Factors, float16 [n], never 0, and multiples, float64 [n, count].
    """
    places = np.abs(wanted).argmax(axis=1)
    extreme = wanted[np.arange(len(wanted)), places]
    ends = (float(least), float(most)) if least < 0 else (float(most),)
    best = np.full(len(wanted), np.inf)
    factors, multiples = np.ones(len(wanted), np.float16), np.zeros(wanted.shape)
    for end in ends:
        for share in SHARES:
            tried = _as_float16(extreme / end * share)
            counts = _multiples(wanted, tried, least, most, never_zero=never_zero)
            energy = (counts * counts).sum(axis=1)
            refit = np.divide((wanted * counts).sum(axis=1), energy, out=tried.astype(np.float64), where=energy > 0)
            tried = _as_float16(refit)
            counts = _multiples(wanted, tried, least, most, never_zero=never_zero)
            error = ((wanted - tried[:, None].astype(np.float64) * counts) ** 2).sum(axis=1)
            better = error < best
            best[better], factors[better], multiples[better] = error[better], tried[better], counts[better]
    return factors, multiples


def _as_float16(factor: np.ndarray) -> np.ndarray:
    """Rounded, and never 0."""
    rounded: np.ndarray = np.where(np.abs(factor) < LEAST, np.copysign(LEAST, factor), factor).astype(np.float16)
    return rounded


def _multiples(wanted: np.ndarray, factor: np.ndarray, least: int, most: int, *, never_zero: bool) -> np.ndarray:
    counts = np.clip(np.rint(wanted / factor[:, None].astype(np.float64)), least, most)
    return np.where(counts == 0, 1.0, counts) if never_zero else counts

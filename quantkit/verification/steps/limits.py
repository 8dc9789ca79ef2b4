"""How far predictions may lie apart: per prompt, from what rounding does to this very model.

Predictions move in proportion to the squared relative error of what is multiplied, weights or inputs, so one measured
cost tells all others of its kind:

    an artifact from the original   the KL that round-to-nearest of the original costs (`RoundingCost`), at as large an
                                    error of the weights as the artifact has
    an engine from the reference    the KL that rounding every product's inputs to int8 costs the reference, times the
                                    squared error of the engine's own arithmetic over that of int8; what storing the
                                    logits in the engine's dtype costs is added

Both are measured on the same prompt. One prompt may be lucky, above all one of a single token, so its cost is mixed
with that of others (`mixed`, `mixed_alike`), and where few likely tokens decide, chance is given more room (`chance`).
What round-to-nearest costs may be luck as a whole, so weights may always move predictions as far as if all of them
were scaled by their error (`at_least_scaled`). What the factors rest on:
`docs/decisions/0010-what-verify-proves.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.models.spec import ModelSpec
from quantkit.tensors.scheme import PER_ROW
from quantkit.verification.steps.logit_facts import LogitFacts

FACTOR = 6.0
"""How many times the cost of round-to-nearest an honest artifact may show on one prompt; 1.6 was measured."""
ENGINE_FACTOR = 4.0
"""How many times what its arithmetic costs an engine may lie from the reference on one prompt."""
PRIOR_POSITIONS = 16
"""Positions that the mean of others counts for beside a prompt's own."""

FLOAT16_NOISE = 2.0**-20 / 12 / 2.2
"""Mean squared error of rounding to float16 over mean square: ulp^2 / 12, and a mantissa's mean square is 2.2."""
FLOAT32_NOISE = FLOAT16_NOISE * 2.0**-26
INT8_NOISE = 3.1e-5
"""Of 32 normal values rounded to multiples of max / 127: max^2 is 6.0 on average, and 6.0 / 127^2 / 12 = 3.1e-5."""
ROUNDINGS = 16
"""Roundings of an engine's whole forward pass per product: norms, rotation, softmax, the stream."""

SUMS = 8
"""Two passes, each with twice the root mean square that independent roundings would have."""

INT8_RUN = 32
"""Inputs in a row that share a scale where rounding to int8 is the measure of what an arithmetic costs."""
INT8_RUNS = {"int8 inputs of 256": 256, "int8 tokens": PER_ROW}
"""Arithmetics (`quantkit.protocols.Runtime`) in which more inputs do. What they cost depends on the largest of these,
so the reference measures it by rounding in the same runs; their error stands for that of int8."""

CHANCE = 4.75
"""Standard deviations that chance goes beyond once in a million times."""


def noise(arithmetic: str, spec: ModelSpec) -> float:
    """Mean squared relative error of each product in an engine's arithmetic (`quantkit.protocols.Runtime`).

    Each product has `ROUNDINGS` of its own, and finds in the stream those of the blocks before it: each block rounds
    the whole stream twice, and on average half of the blocks lie before. A sum of n float32 products has up to n
    roundings in a row, in the engine and in the reference, and they need not be independent: `SUMS` times as much is
    taken. What rounding the logits themselves costs is not in it (`float16_cost`).
    """
    roundings = ROUNDINGS + spec.num_hidden_layers
    sums = SUMS * (roundings + max(spec.hidden_size, spec.intermediate_size)) * FLOAT32_NOISE
    return (
        sums
        + {
            "float32": 0.0,
            "float16 inputs": FLOAT16_NOISE,
            "bfloat16 inputs": FLOAT16_NOISE * 64,
            "float16": FLOAT16_NOISE * roundings,
            "int8 inputs": INT8_NOISE,
            **dict.fromkeys(INT8_RUNS, INT8_NOISE),
        }[arithmetic]
    )


@dataclass(frozen=True, slots=True)
class RoundingCost:
    """What round-to-nearest of the original's layers to `bits` costs.

    error: ||W - Q||^2 / ||W||^2 over all of them. kl: mean KL from the original on each prompt, in nats.
    """

    bits: int
    error: float
    kl: tuple[float, ...]

    @classmethod
    def from_json(cls, data: object, prompts: int, where: str) -> RoundingCost:
        """Read what a golden file holds of it; raises `MalformedFile`."""
        fields: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        bits, error, kl = fields.get("bits"), fields.get("error"), fields.get("kl")
        numbers = [error, *kl] if isinstance(kl, list) else []
        sound = all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in numbers)
        if type(bits) is not int or len(numbers) != prompts + 1 or not sound or not error:
            raise MalformedFile(f"{where}: what rounding costs is damaged")
        return cls(bits, float(error), tuple(map(float, numbers[1:])))


def mixed(kl: Sequence[float], positions: Sequence[int]) -> tuple[float, ...]:
    """Each prompt's KL with the mean of all positions (`_with_prior`)."""
    mean = sum(k * n for k, n in zip(kl, positions, strict=True)) / sum(positions)
    return tuple(_with_prior(k, n, mean) for k, n in zip(kl, positions, strict=True))


def mixed_alike(kl: Sequence[np.ndarray]) -> tuple[float, ...]:
    """The same, where the KL of each position is known, with the mean of the same positions of all prompts: the first
    ones, which attend to little else, are moved more than others."""
    return tuple(
        _with_prior(float(own.mean()), len(own), float(np.concatenate([other[: len(own)] for other in kl]).mean()))
        for own in kl
    )


def _with_prior(own: float, positions: int, prior: float) -> float:
    """`prior` counts for `PRIOR_POSITIONS` beside a prompt's own; but what was measured on it is not taken back."""
    return max(own, (own * positions + prior * PRIOR_POSITIONS) / (positions + PRIOR_POSITIONS))


def chance(freedom: float) -> float:
    """How many times their measured cost random errors may cost by chance: what a sum of `freedom` / 2 squares of
    normal numbers exceeds once in a million times, over its mean (Wilson and Hilferty 1931, "The distribution of
    chi-square"). The cost is a sum of `freedom` squares; half of them, because the measured one is a draw as well, and
    variances add."""
    variance = 2 / (9 * freedom / 2)
    return (1 - variance + CHANCE * math.sqrt(variance)) ** 3


def noise_limits(
    rounded: Sequence[np.ndarray],
    facts: Sequence[LogitFacts],
    squared_error: float,
    factor: float,
    stored: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """The KL on each prompt that independent errors of this size cost, weights' or inputs', at most.

    Args:
        rounded: KL at each position of the trusted predictions with inputs rounded to int8 from themselves.
        facts: of the trusted logits of each prompt. They come as float32, which rounds them once more.
        squared_error: relative, of every product.
        factor: how many times what they cost on average may be shown; more where chance may do more (`chance`).
        stored: KL on each prompt that rounding the logits to a smaller dtype costs; None = they are not.
    """
    share = squared_error / INT8_NOISE
    return tuple(
        max(factor, chance(fact.freedom)) * (kl * share + (fact.largest * 2.0**-24) ** 2 + extra)
        for kl, fact, extra in zip(mixed_alike(rounded), facts, stored or [0.0] * len(facts), strict=True)
    )


def prediction_limits(
    costs: Sequence[RoundingCost], error: float, facts: Sequence[LogitFacts], spec: ModelSpec
) -> tuple[float, ...]:
    """Largest KL from the original on each prompt, of an artifact whose weights have this squared relative error.

    Between the recorded errors KL is interpolated on logarithmic scales, beyond them it is proportional. The two
    float32 forward passes count as an error of the weights, and logits are rounded to float32 (`noise_limits`).

    facts: of the original's logits on each prompt.
    """
    positions = [fact.positions for fact in facts]
    shown = [(cost.error, mixed(cost.kl[: len(positions)], positions)) for cost in costs]
    shown.sort(key=lambda point: point[0])
    whole = error + noise("float32", spec)
    measured = [
        FACTOR * (_interpolated([(e, kl[prompt]) for e, kl in shown], whole) + (fact.largest * 2.0**-24) ** 2)
        for prompt, fact in enumerate(facts)
    ]
    return at_least_scaled(measured, facts, whole)


def at_least_scaled(limits: Sequence[float], facts: Sequence[LogitFacts], error: float) -> tuple[float, ...]:
    """`limits`, but on no prompt less than what weights cost that have all the error in common: scaled by 1 - s, with
    s^2 = `error`, they scale logits, which costs s^2 * spread / 2.

    Independent errors of a sharp prediction hardly reach its likely tokens, and those of a grid that holds the original
    all but exactly may cost next to nothing. What one grid costs is then no measure of another, which may shrink every
    weight of a sign by the same share.
    """
    return tuple(max(limit, error * fact.spread / 2) for limit, fact in zip(limits, facts, strict=True))


def _interpolated(points: Sequence[tuple[float, float]], error: float) -> float:
    first, last = points[0], points[-1]
    if error <= first[0]:
        return first[1] * error / first[0]
    if error >= last[0]:
        return last[1] * error / last[0]
    x = np.log([point[0] for point in points])
    y = np.log([max(point[1], 1e-30) for point in points])
    return float(np.exp(np.interp(math.log(error), x, y)))

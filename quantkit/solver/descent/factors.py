"""Factors that several groups share, d and dmin of a super-block, for fixed codes and integers: one joint Newton step.

The values of a super-block are Q = d * U + dmin * V with U = level * sub_scale and V = -sub_min. The error is quadratic
in both factors, so its minimum is one step away; it is rounded as it is stored, and taken where the error falls.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantkit.tensors.scheme import Fit, Scheme

INDEPENDENT = 1e-4
"""Least share that two directions must have apart from each other, to be moved along both."""


def refitted(R: Tensor, H: Tensor, steps: Tensor, scheme: Scheme, part: Fit) -> Tensor | None:
    """By how much the weights [columns, rows] of groups that share factors change; `part` is changed in place.

    Args:
        R, H: of these groups' columns, H (Q - W) [columns, rows] and [columns, columns].
        steps: their levels, [columns, rows].
        scheme: has factors that are shared.
        part: of these groups, [groups, rows].
    """
    directions = scheme.directions(steps.view(len(part.scale), -1, steps.shape[1]), part)
    along = {name: x.reshape(steps.shape) for name, x in directions.items()}
    changes = _newton(R, H, along)
    old = {name: part.shared[name][0] for name in along} if part.shared is not None else {}
    wanted = {name: scheme.rounded_factor(old[name] + change) for name, change in changes.items()}
    moves = {name: wanted[name] - old[name] for name in along}
    difference = sum((along[name] * move for name, move in moves.items()), torch.zeros_like(R))
    change = (difference * (2 * R + H @ difference)).sum(0)
    better = (change < 0) & torch.isfinite(change)
    if not bool(better.any()):
        return None
    scheme.take_factors(part, {name: torch.where(better, wanted[name], old[name]) for name in along})
    return difference.masked_fill_(~better, 0.0)


def _newton(R: Tensor, H: Tensor, along: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The step along each direction, of one or two, that the quadratic asks for: [rows] by name."""
    slopes = {name: (u * R).sum(0) for name, u in along.items()}
    curved = {name: H @ u for name, u in along.items()}
    curvatures = {name: (along[name] * curved[name]).sum(0) for name in along}
    alone = {name: -slopes[name] / curvatures[name] for name in along}
    if len(along) == 1:
        return alone
    first, second = along
    mixed = (along[first] * curved[second]).sum(0)
    determinant = curvatures[first] * curvatures[second] - mixed * mixed
    apart = determinant > INDEPENDENT * curvatures[first] * curvatures[second]
    both = {
        first: (mixed * slopes[second] - curvatures[second] * slopes[first]) / determinant,
        second: (mixed * slopes[first] - curvatures[first] * slopes[second]) / determinant,
    }
    return {
        first: torch.where(apart, both[first], alone[first]),
        second: torch.where(apart, both[second], torch.zeros_like(mixed)),
    }

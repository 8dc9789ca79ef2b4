"""Descent on the true quadratic after GPTQ: group by group, first the scale and offset, then the codes one by one.

Where groups share factors, their scales are coarse: each first looks for a better grid (`grids`), and the last of those
that share some is followed by a refit of these (`factors`).

With Q = s * steps + o, the error of a row is (Q - W) H (Q - W)ᵀ, and R = H (Q - W) is half its gradient. R is what
everything here needs and what costs most, so it is handed on from group to group.

Scale: for fixed steps the error is quadratic in the scale s of group g. Half its gradient is steps_g R_gᵀ, half its
second derivative A = steps_g H_gg steps_gᵀ, so the best scale is one Newton step away: s - steps_g R_gᵀ / A. It is
rounded as the scheme stores it, and taken only where the error falls. Offset: the same with ones for the steps.

Codes ("CDQuant", Nair and Suggala 2024, cyclic form): the best real value of Q_j when all others stay is
Q_j - R_j / H_jj; the level nearest to it is never worse than the current one.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from quantkit.solver.descent.factors import refitted
from quantkit.solver.descent.grids import regridded
from quantkit.solver.feedback import BLOCK_COLUMNS, STRIP_COLUMNS
from quantkit.tensors.scheme import Fit, Levels, Scheme


def descend(R: Tensor, H: Tensor, steps: Tensor, scheme: Scheme, fit: Fit, *, turn: Lock, again: bool) -> None:
    """One pass over all groups, in place.

    Args:
        R: H (Q - W), float32 [cols, rows]; left up to date only if it is needed `again`.
        H: float32 [cols, cols], symmetric, positive diagonal.
        steps: float32 [cols, rows], levels of the scheme.
        scheme: says which scales and offsets can be stored.
        fit: scale and offset of every group, [groups, rows].
        turn: held while columns are looped over.
        again: whether another pass follows.
    """
    width, sharing = len(R) // len(fit.scale), scheme.groups_sharing
    for group in range(len(fit.scale)):
        first = group // sharing * sharing  # of those that share factors
        here, block = slice(group * width, (group + 1) * width), slice(first * width, (group + 1) * width)
        refined, difference = _group(R[here], H[here, here], steps[here], scheme, fit.part(group), turn=turn)
        steps[here] = refined
        needed = here.stop if sharing == 1 else block.start  # R of what follows, and of what is refitted together
        changed = slice(0 if again else needed, len(R))
        R[changed].addmm_(H[changed, here], difference)
        if group + 1 == first + sharing and sharing > 1:
            moved = refitted(R[block], H[block, block], steps[block], scheme, fit.part(slice(first, group + 1)))
            if moved is not None:
                changed = slice(0 if again else block.stop, len(R))
                R[changed].addmm_(H[changed, block], moved)


def _group(R: Tensor, corner: Tensor, old: Tensor, scheme: Scheme, part: Fit, *, turn: Lock) -> tuple[Tensor, Tensor]:
    """Better steps of a group, whose `part` moves with them, and by how much its weights change: [width, rows]."""
    before, shift = old * part.scale, None
    if scheme.groups_sharing > 1:
        offset = None if part.offset is None else part.offset.clone()
        old = regridded(R, corner, old, scheme, part, turn=turn)
        regained = torch.sub(old * part.scale, before)
        if offset is not None and part.offset is not None:
            shift = part.offset - offset
            regained.add_(shift)
        R = torch.addmm(R, corner, regained)
    products = corner @ old
    gradient, A = (old * R).sum(0), (old * products).sum(0)
    wanted = part.scale - gradient / A
    moved = _gaining(scheme.rounded_scale(wanted, part) - part.scale, gradient, A, wanted != 0)
    part.scale.add_(moved)
    pull = products.mul_(moved).add_(R)
    moved_offset = _shifted(pull, corner, scheme, part)
    refined = _swept(pull.div_(part.scale), corner, old, scheme.levels_of(part), turn)
    difference = torch.sub(refined * part.scale, before, out=before)
    for further in (shift, moved_offset):
        if further is not None:
            difference.add_(further)
    return refined, difference


def _gaining(moved: Tensor, gradient: Tensor, A: Tensor, allowed: Tensor) -> Tensor:
    """`moved` where the error falls by it, by its gradient and curvature; elsewhere 0."""
    gains = moved * (2 * gradient + moved * A) < 0
    return torch.where(gains & allowed & torch.isfinite(moved), moved, 0.0)


def _shifted(pull: Tensor, H: Tensor, scheme: Scheme, part: Fit) -> Tensor | None:
    """Move the offsets of a group, and its gradient `pull` with them; returns by how much, None without offsets."""
    if part.offset is None:
        return None
    columns = H.sum(1)
    gradient, A = pull.sum(0), columns.sum()
    wanted = part.offset - gradient / A
    moved = _gaining(scheme.rounded_offset(wanted, part) - part.offset, gradient, A, torch.isfinite(wanted))
    part.offset.add_(moved)
    pull.addr_(columns, moved)
    return moved


def _swept(R: Tensor, H: Tensor, steps: Tensor, levels: Levels, turn: Lock) -> Tensor:
    """Better steps [width, rows] of a group, one after the other; `R`, in units of the scale, is overwritten."""
    refined = torch.zeros_like(steps)
    for start in range(0, len(steps), BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, len(steps)))
        with turn:
            _sweep(R[block], H[block, block], steps[block], refined[block], levels)
        R[block.stop :].addmm_(H[block.stop :, block], refined[block] - steps[block])
    return refined


def _sweep(R: Tensor, H: Tensor, steps: Tensor, refined: Tensor, levels: Levels) -> None:
    """Columns of a block one after the other, into `refined`, which is zero at first."""
    weights, before = (-1 / H.diagonal()).tolist(), H.tril(-1)
    # Without what the old steps before each column contribute, the new ones are simply added.
    R.addmm_(before, steps, alpha=-1.0)
    for start in range(0, len(steps), STRIP_COLUMNS):
        strip = slice(start, start + STRIP_COLUMNS)
        R[strip].addmm_(before[strip, :start], refined[:start])
        by_row, couplings = refined[strip].T, before[strip, strip].contiguous()
        columns = (x.unbind() for x in (steps[strip], refined[strip], R[strip], couplings))
        for old, new, r, h, weight in zip(*columns, weights[strip], strict=True):
            r.addmv_(by_row, h)  # h is zero for this and later columns
            levels.nearest_(torch.add(old, r, alpha=weight, out=new))

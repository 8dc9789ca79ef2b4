"""Another grid for a group, where its best codes there are better than its codes on the one that it has.

With all other groups as they are, the best real values of a group are T = Q - H_gg⁻¹ R_g, and codes on any grid cost
(Q' - T)ᵀ H_gg (Q' - T) more. Each of the scheme's neighbours of a grid is given the codes that error feedback within
the group finds for T, and the cheapest is taken, if it is cheaper than what is there. A refit of the scale for fixed
codes cannot do that: near its optimum one step of a coarse scale costs more than it saves until the codes follow.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from quantkit.solver.feedback import feedback_steps
from quantkit.tensors.scheme import Fit, Scheme

LESS = 1 - 1e-6
"""What another grid must cost at most of the present one: last bits decide nothing."""


def regridded(R: Tensor, H: Tensor, steps: Tensor, scheme: Scheme, part: Fit, *, turn: Lock) -> Tensor:
    """Steps [width, rows] on the best grid, which `part` gets in place; as they are where H cannot be factored.

    Args:
        R, H: of the group, H (Q - W) [width, rows] and [width, width].
        steps: as they are.
        scheme: has groups that share factors, whose scales are therefore coarse.
        part: scale and offset of the group, [rows].
        turn: held while columns are looped over.
    """
    (lower, failed), (backwards, failed_too) = torch.linalg.cholesky_ex(H), torch.linalg.cholesky_ex(H.flip(0, 1))
    if bool(failed) or bool(failed_too):
        return steps
    unit = (backwards / backwards.diagonal()).flip(0, 1)  # as `quantkit.solver.cholesky.unit_upper`
    moved = torch.cholesky_solve(R, lower).neg_()
    targets = steps * part.scale + moved
    if part.offset is not None:
        targets += part.offset
    tried = list(scheme.neighbours(part))
    scale = torch.cat([fit.scale for fit in tried])
    aims = torch.cat([targets if fit.offset is None else targets - fit.offset for fit in tried], dim=1)
    lost = aims.clone()
    found = feedback_steps(lost, unit, scale[None], [scheme.levels_of(part)], [0] * len(H), turn=turn)
    torch.addcmul(aims, found, scale, value=-1.0, out=lost)
    costs, best = (lost * (H @ lost)).sum(0).view(len(tried), -1).min(0)
    better = costs < LESS * (moved * (H @ moved)).sum(0)
    for kept, new in ((part.scale, [fit.scale for fit in tried]), (part.offset, [fit.offset for fit in tried])):
        if kept is not None:
            chosen = torch.stack([x for x in new if x is not None]).gather(0, best[None])[0]
            torch.where(better, chosen, kept, out=kept)
    taken = found.view(len(H), len(tried), -1).gather(1, best.expand(len(H), 1, -1))[:, 0]
    return torch.where(better, taken, steps)

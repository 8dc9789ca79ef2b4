"""Checkpoints whose linear weights are ternary as they lie: what a run takes over from them, code for code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.errors import UnsupportedSpec
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.recipe import Assignment
from quantkit.progress import Progress
from quantkit.tensors.ternary import ternary_weights
from quantkit.tensors.views import TensorView

EXACT_METHOD = "rtn"
"""Rounds to nearest, which moves no weight that lies on its levels."""
NAMED = 3
"""Weights that a note names."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """assignments: of all weights. exact: names of those that are taken over as they are. notes: what to tell of it."""

    assignments: Mapping[str, Assignment]
    exact: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def taken_over(
    checkpoint: Checkpoint,
    assignments: Mapping[str, Assignment],
    *,
    strict: bool,
    threads: int = 1,
    progress: Progress | None = None,
) -> TakenOver:
    """What becomes of a model whose weights are ternary as they lie; of any other model, what was assigned.

    Only weights that are to become ternary are looked at. Those that are not ternary stay dense.

    Raises:
        UnsupportedSpec: `strict`, and some are not ternary; names them.
    """
    wanted = {name: one for name, one in assignments.items() if getattr(one.scheme, "ternary", False)}
    views = [view for name in wanted if isinstance(view := checkpoint.weights[name], TensorView)]
    weights = ternary_weights(views, threads=threads, progress=progress)
    if weights.found and weights.off_grid and strict:
        told = "; ".join(weights.described(name) for name in list(weights.off_grid)[:NAMED])
        more = f"; and {len(weights.off_grid) - NAMED} more" if len(weights.off_grid) > NAMED else ""
        raise UnsupportedSpec(told + more, hint="without --strict such weights stay dense")
    made = dict(assignments)
    for name in weights.off_grid:
        made[name] = replace(assignments[name], scheme=None)
    for name, scheme in weights.found.items():
        made[name] = Assignment(scheme, EXACT_METHOD)
    return TakenOver(made, frozenset(weights.found), weights.notes)

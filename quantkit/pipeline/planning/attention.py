"""Which engines follow a model's `sparse_config`, and which attend densely as if there were none."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import Verdict

ORACLE = "reference"
SPARSE = "sparse"
"""Said by `PlannedArtifact.options` of a graph that attends sparsely by itself."""


def attention_line(
    source: Checkpoint, artifact: PlannedArtifact, engines: Sequence[str], found: Sequence[Verdict]
) -> str | None:
    """Of the engines that load an artifact, which attend how; None for a model without sparse attention.

    source: the model with the architecture that it will have: a Llama, to which one is folded, has no `sparse_config`.
    """
    if source.spec.sparse is None:
        return None
    if artifact.options.get("attention") == SPARSE:
        return "attends sparsely in every engine: its graph says how"
    sparsely = {verdict.engine: verdict.sparsely for verdict in found if verdict.sparsely and verdict.refusal is None}
    sparsely |= {ORACLE: "with --attention sparse"} if ORACLE in engines else {}
    densely = [engine for engine in engines if engine not in sparsely]
    told = [f"{engine} attends sparsely ({how})" for engine, how in sparsely.items()]
    told += [f"densely, without regard to sparse_config: {', '.join(densely)}"] if densely else []
    return "; ".join(told)

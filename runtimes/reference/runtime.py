"""The plug-in: the reference, dense or sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from quantkit import registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse.session import NOT_SPARSE, SparseSession
from quantkit.runtimes.reference.sparse.variants import DEFAULT, variant_named


class ReferenceRuntime:
    """Reads through the exporters' own readers, so it runs whatever they read.

    attention: "dense", or "sparse" as the model's `sparse_config` describes it; variant: as which code computes that,
    one of `quantkit.runtimes.reference.sparse.variants`.
    """

    name = "reference"
    summary = "numpy float32, slow and readable: the oracle"
    formats = registry.names("exporters")
    architectures = ("minicpm", "llama")

    def __init__(self, *, attention: Literal["dense", "sparse"] = "dense", variant: str = DEFAULT.name) -> None:
        self._sparsely = attention == "sparse"
        self._variant = variant_named(variant)

    def missing(self) -> str | None:
        """Always None: numpy is all it needs."""
        return None

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Everything in float32."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        """None: what was read can be run, sparsely if it says how."""
        return NOT_SPARSE if self._sparsely and checkpoint.spec.sparse is None else None

    def open(self, path: Path) -> ReferenceSession:
        """Open any readable artifact; reading errors are raised as they are."""
        checkpoint = registry.open_checkpoint(path)
        if self._sparsely:
            return SparseSession(checkpoint, self._variant)
        return ReferenceSession(checkpoint)


RUNTIME = ReferenceRuntime()

"""The plug-in: the reference, dense or sparse, and of both kinds of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from quantkit import registry
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.sala.session import SalaSession
from quantkit.runtimes.reference.session import ReferenceSession
from quantkit.runtimes.reference.sparse.session import NOT_SPARSE, Observer, SparseSession
from quantkit.runtimes.reference.sparse.variants import DEFAULT, variant_named


class ReferenceRuntime:
    """Reads through the exporters' own readers, so it runs whatever they read.

    attention: "dense", or "sparse" as the model's `sparse_config` describes it; variant: as which code computes that,
    one of `quantkit.runtimes.reference.sparse.variants`.
    """

    name = "reference"
    summary = "numpy float32, slow and readable: the oracle"
    formats = registry.names("exporters")
    architectures = ("minicpm", "llama", "sala", "minicpm3")

    def __init__(self, *, attention: Literal["dense", "sparse"] = "dense", variant: str = DEFAULT.name) -> None:
        self._sparsely = attention == "sparse"
        self._variant = variant_named(variant)

    @property
    def variant(self) -> str:
        """As which code it computes sparse attention."""
        return self._variant.name

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
            return self.watched(checkpoint)
        return self.dense(checkpoint)

    def dense(self, checkpoint: Checkpoint) -> ReferenceSession:
        """An open checkpoint that attends densely."""
        if checkpoint.spec.lightning is not None:
            return SalaSession(checkpoint, self._variant, sparsely=False)
        return ReferenceSession(checkpoint)

    def sparsely(self, variant: str | None) -> ReferenceRuntime:
        """The reference that attends sparsely, as the code `variant` does; None = the default.

        Raises:
            BadOption: there is no such variant.
        """
        return ReferenceRuntime(attention="sparse", variant=variant or DEFAULT.name)

    def watched(
        self, checkpoint: Checkpoint, *, observer: Observer | None = None, scored: Observer | None = None
    ) -> SparseSession:
        """An open checkpoint that attends sparsely, see `SparseSession`; raises what that raises."""
        kind = SparseSession if checkpoint.spec.lightning is None else SalaSession
        return kind(checkpoint, self._variant, observer=observer, scored=scored)

    def sparse_from(self, sparse: SparseSpec) -> int:
        """Tokens of a prompt, read at once, whose last one attends sparsely."""
        return self._variant.sparse_from(sparse)


RUNTIME = ReferenceRuntime()

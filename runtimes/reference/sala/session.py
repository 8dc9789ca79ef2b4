"""A model of both kinds of layers, a prompt at a time or token by token."""

from __future__ import annotations

from dataclasses import replace

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import SparseSpec
from quantkit.runtimes.reference.forward import ForwardPass, Work
from quantkit.runtimes.reference.sala.forward import Layers, SalaForwardPass
from quantkit.runtimes.reference.session import WEIGHT_BUDGET
from quantkit.runtimes.reference.sparse.session import Observer, SparseSession
from quantkit.runtimes.reference.sparse.variants import DEFAULT, Variant

DENSE = SparseSpec(dense_len=1 << 62)
"""At no length sparse."""


class SalaSession(SparseSession):
    """A MiniCPM-SALA checkpoint. sparsely: its softmax layers attend as `sparse_config` says, else densely.

    observer, scored: see `SparseSession`.

    Raises:
        UnsupportedModel: the config says nothing of sparse attention, and it is asked for.
        BadOption: the variant cannot be run with what it says.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        variant: Variant = DEFAULT,
        *,
        sparsely: bool = True,
        budget: int = WEIGHT_BUDGET,
        observer: Observer | None = None,
        scored: Observer | None = None,
    ) -> None:
        as_asked = checkpoint if sparsely else replace(checkpoint, spec=replace(checkpoint.spec, sparse=DENSE))
        super().__init__(as_asked, variant, budget=budget, observer=observer, scored=scored)
        self._memory = Layers()

    def _forget(self) -> None:
        self._memory = Layers()

    def _forward(self, work: Work, *, keep: bool) -> ForwardPass:
        return self._with(work, keep=keep, layers=None)

    def _going_on(self, work: Work) -> ForwardPass:
        return self._with(work, keep=True, layers=self._memory)

    def _with(self, work: Work, *, keep: bool, layers: Layers | None) -> ForwardPass:
        return SalaForwardPass(
            self.spec,
            self._weights,
            work,
            keep=keep,
            attending=self._attending,
            layers=layers,
        )

"""A model that attends sparsely: the reference's forward pass with another attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quantkit.errors import UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.runtimes.reference.formulas import rotate
from quantkit.runtimes.reference.forward import Batch, ForwardPass, Span, Work
from quantkit.runtimes.reference.session import WEIGHT_BUDGET, ReferenceSession
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import DEFAULT, Variant
from quantkit.runtimes.reference.weights import Weights

NOT_SPARSE = "its config.json has no sparse_config, which would say how blocks of tokens are chosen"

Observer = Callable[[int, int, int, np.ndarray], None]
"""Told what was chosen: layer, group of heads, first position, and the blocks of each position from there on (T, B)."""


class SparseForwardPass(ForwardPass):
    """`ForwardPass` whose layers attend sparsely.

    layers: what each layer remembers of the one prompt that is read, or None where every prompt begins anew.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        work: Work,
        *,
        keep: bool,
        variant: Variant,
        observer: Observer | None,
        layers: dict[int, SparseAttention] | None,
    ) -> None:
        super().__init__(spec, weights, work, keep=keep)
        self._sparse = spec.sparse or SparseSpec()
        self._variant = variant
        self._observer = observer
        self._layers = layers

    def _attention(self, span: Span, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """`ForwardPass._attention`; a prompt goes through in pieces where the variant reads it so."""
        q, k, v = (x.reshape(len(x), -1, self._spec.head_dim).swapaxes(0, 1) for x in (q, k, v))  # (heads, T, D)
        turned_q, turned_k = rotate(q, span.cos, span.sin), rotate(k, span.cos, span.sin)
        attention = self._of_layer(layer)
        step = self._variant.chunk or q.shape[1]
        mixed = []
        for start in range(0, q.shape[1], step):
            part = slice(start, start + step)
            unrotated = (q[:, part], k[:, part]) if self._sparse.use_nope else None
            mixed.append(attention.attend(turned_q[:, part], turned_k[:, part], v[:, part], unrotated=unrotated))
            self._work.advance(0)
        return np.concatenate(mixed)

    def _of_layer(self, layer: int) -> SparseAttention:
        if self._layers is not None and layer in self._layers:
            return self._layers[layer]
        spec, observer = self._spec, self._observer
        told = None if observer is None else lambda group, first, blocks: observer(layer, group, first, blocks)
        attention = SparseAttention(self._sparse, self._variant, spec.num_key_value_heads, spec.head_dim, observer=told)
        if self._layers is not None:
            self._layers[layer] = attention
        return attention


class SparseSession(ReferenceSession):
    """A checkpoint that runs as its `sparse_config` says, a prompt at a time or, in `next_logits`, token by token.

    `logits` reads ids as one prompt, as Hugging Face's code does; `next_logits` decodes what comes behind the ids that
    it saw last, and that may differ from the last row of `logits`: a prompt's first tokens are sparse as soon as the
    prompt is long, decoded ones once the context is.

    observer: told of every choice of blocks.

    Raises:
        UnsupportedModel: the config says nothing of sparse attention.
        BadOption: the variant cannot be run with what it says.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        variant: Variant = DEFAULT,
        *,
        budget: int = WEIGHT_BUDGET,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(checkpoint, budget=budget)
        if checkpoint.spec.sparse is None:
            raise UnsupportedModel(
                f"{checkpoint.path}: {NOT_SPARSE}",
                hint="add one to config.json, or run the model with dense attention",
            )
        variant.check(checkpoint.spec.sparse)
        self._variant = variant
        self._observer = observer
        self._ids: list[int] = []
        self._layers: dict[int, SparseAttention] = {}

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """See `ReferenceSession.next_logits`; ids that do not begin with those of the last call are read anew."""
        ids, known = self._checked(token_ids), self._ids
        goes_on = len(ids) > len(known) and ids[: len(known)] == known
        if not goes_on or not self.spec.rope.turns_alike(len(known), len(ids)):
            known, self._layers = [], {}
        self._ids = []  # until all layers know the same ones again
        model = self._model(Work(0, None), keep=True, layers=self._layers)
        new = ids[len(known) :]
        batch = Batch(model.embed(new), [model.span(slice(0, len(new)), len(ids))])
        for _ in model.stages([batch]):
            pass
        self._ids = ids
        row: np.ndarray = model.logits(batch, slice(len(new) - 1, None))[0]
        return row

    def _forward(self, work: Work, *, keep: bool) -> ForwardPass:
        return self._model(work, keep=keep, layers=None)

    def _model(self, work: Work, *, keep: bool, layers: dict[int, SparseAttention] | None) -> ForwardPass:
        return SparseForwardPass(
            self.spec, self._weights, work, keep=keep, variant=self._variant, observer=self._observer, layers=layers
        )

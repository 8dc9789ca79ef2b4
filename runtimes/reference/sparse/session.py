"""A model that attends sparsely: the reference's forward pass with another attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import UnsupportedModel
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.runtimes.reference.formulas import rotate
from quantkit.runtimes.reference.forward import Batch, ForwardPass, Span, Work
from quantkit.runtimes.reference.session import WEIGHT_BUDGET, ReferenceSession
from quantkit.runtimes.reference.sparse import attention
from quantkit.runtimes.reference.sparse.attention import SparseAttention
from quantkit.runtimes.reference.sparse.variants import DEFAULT, Variant
from quantkit.runtimes.reference.weights import Weights

NOT_SPARSE = "its config.json has no sparse_config, which would say how blocks of tokens are chosen"

Observer = Callable[[int, int, int, np.ndarray], None]
"""Told what was chosen: layer, group of heads, first position, and the blocks of each position from there on (T, B).
Or by which scores, see `quantkit.runtimes.reference.sparse.attention.Observer`."""


@dataclass(frozen=True, slots=True)
class Attending:
    """How sparse attention is computed, as which code, and who is told: of every choice, and of the scores before."""

    variant: Variant
    observer: Observer | None
    scored: Observer | None


class SparseForwardPass(ForwardPass):
    """`ForwardPass` whose layers attend sparsely.

    layers: what each layer remembers of the one prompt that is read, or None where every prompt begins anew.
    last_only: only the last token's logits will be asked for, of one prompt: in the last block it attends alone.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        work: Work,
        *,
        keep: bool,
        attending: Attending,
        layers: dict[int, SparseAttention] | None,
        last_only: bool,
    ) -> None:
        super().__init__(spec, weights, work, keep=keep)
        self._sparse = spec.sparse or SparseSpec()
        self._attending = attending
        self._layers = layers
        self._last_only = last_only

    def _add_attention(self, batches: Sequence[Batch], layer: int) -> None:
        """`ForwardPass._add_attention`; what only the last token's logits need of the last block, if no more is."""
        if not self._last_only or layer + 1 < self._spec.num_hidden_layers:
            super()._add_attention(batches, layer)
            return
        names = ("input_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo"))
        weight, W_q, W_k, W_v, W_o = self._read(f"model.layers.{layer}", *names)
        (batch,) = batches
        (span,) = batch.spans
        x = self._norm(batch.x, weight)
        q, k, v = self._multiply(x[-1:], W_q), self._multiply(x, W_k), self._multiply(x, W_v)
        batch.x = batch.x[-1:] + self._s * self._multiply(self._attention(span, layer, q, k, v), W_o)

    def _attention(self, span: Span, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """`ForwardPass._attention`; a prompt goes through in pieces where the variant reads it so. q may be of the last
        tokens alone."""
        q, k, v = (x.reshape(len(x), -1, self._spec.head_dim).swapaxes(0, 1) for x in (q, k, v))  # (heads, T, D)
        silent = k.shape[1] - q.shape[1]  # tokens before those that attend
        turned_q, turned_k = rotate(q, span.cos[silent:], span.sin[silent:]), rotate(k, span.cos, span.sin)
        remembering = self._of_layer(layer)
        step = self._attending.variant.chunk or k.shape[1]
        mixed = []
        for start in range(0, k.shape[1], step):
            new, asking = slice(start, start + step), slice(max(0, start - silent), max(0, start + step - silent))
            unrotated = (q[:, asking], k[:, new]) if self._sparse.use_nope else None
            mixed.append(remembering.attend(turned_q[:, asking], turned_k[:, new], v[:, new], unrotated=unrotated))
            self._work.advance(0)
        return np.concatenate(mixed)

    def _of_layer(self, layer: int) -> SparseAttention:
        if self._layers is not None and layer in self._layers:
            return self._layers[layer]
        made = SparseAttention(
            self._sparse,
            self._attending.variant,
            self._spec.num_key_value_heads,
            self._spec.head_dim,
            observer=_of(layer, self._attending.observer),
            scored=_of(layer, self._attending.scored),
        )
        if self._layers is not None:
            self._layers[layer] = made
        return made


def _of(layer: int, observer: Observer | None) -> attention.Observer | None:
    """An observer of one layer's attention who tells `observer`."""
    return None if observer is None else lambda group, first, rows: observer(layer, group, first, rows)


class SparseSession(ReferenceSession):
    """A checkpoint that runs as its `sparse_config` says, a prompt at a time or, in `next_logits`, token by token.

    `logits` reads ids as one prompt, as Hugging Face's code does; `next_logits` decodes what comes behind the ids that
    it saw last, and that may differ from the last row of `logits`: a prompt's first tokens are sparse as soon as the
    prompt is long, decoded ones once the context is.

    observer: told of every choice of blocks. scored: told of the scores that it is made by, before it is.

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
        scored: Observer | None = None,
    ) -> None:
        super().__init__(checkpoint, budget=budget)
        if checkpoint.spec.sparse is None:
            raise UnsupportedModel(
                f"{checkpoint.path}: {NOT_SPARSE}",
                hint="add one to config.json, or run the model with dense attention",
            )
        variant.check(checkpoint.spec.sparse)
        self._attending = Attending(variant, observer, scored)
        self._ids: list[int] = []
        self._layers: dict[int, SparseAttention] = {}

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """See `ReferenceSession.next_logits`; ids that do not begin with those of the last call are read anew."""
        ids, known = self._checked(token_ids), self._ids
        goes_on = 0 < len(known) < len(ids) and ids[: len(known)] == known
        if not goes_on or not self.spec.rope.turns_alike(len(known), len(ids)):
            known = []
            self._forget()
        self._ids = []  # until all layers know the same ones again
        model = self._going_on(Work(0, None))
        new = ids[len(known) :]
        batch = Batch(model.embed(new), [model.span(slice(0, len(new)), len(ids))])
        for _ in model.stages([batch]):
            pass
        self._ids = ids
        row: np.ndarray = model.logits(batch, slice(-1, None))[0]
        return row

    def _forget(self) -> None:
        """Nothing is remembered of the ids before."""
        self._layers = {}

    def _forward(self, work: Work, *, keep: bool) -> ForwardPass:
        return self._model(work, keep=keep, layers=None)

    def _going_on(self, work: Work) -> ForwardPass:
        """The formulas for what follows the ids before."""
        return self._model(work, keep=True, layers=self._layers)

    def _model(self, work: Work, *, keep: bool, layers: dict[int, SparseAttention] | None) -> ForwardPass:
        return SparseForwardPass(
            self.spec,
            self._weights,
            work,
            keep=keep,
            attending=self._attending,
            layers=layers,
            last_only=layers is not None,
        )

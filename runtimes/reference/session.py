"""The oracle: the family's forward pass in plain numpy float32, over any artifact that quantkit reads.

Slow and readable on purpose. It shares no line with `quantkit/models/torch_model.py`; each step is written from its
formula, so that the two, and the engines, can accuse one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_length
from quantkit.models.spec import ModelSpec
from quantkit.protocols import Predictions
from quantkit.runtimes.reference.forward import Batch, ForwardPass, Past, Progress, Work
from quantkit.runtimes.reference.latent.forward import LatentForwardPass
from quantkit.runtimes.reference.weights import Weights

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHT_BUDGET = 2 << 30
"""Bytes of float32 weights kept between calls: a 0.5B model whole; of larger ones what fits, the rest read anew."""


class ReferenceSession:
    """A checkpoint ready to run. Weights are read at first use; `budget` bounds how many bytes of them stay.

    Raises:
        BadOption: no token ids, one that is not in the vocabulary, or more than the model's context holds.
    """

    def __init__(self, checkpoint: Checkpoint, *, budget: int = WEIGHT_BUDGET) -> None:
        self.spec = checkpoint.spec
        self._weights = Weights(checkpoint.weights, budget)
        self._past = Past([], {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        (prediction,) = self._predicted([self._checked(token_ids)], int8_run=None, progress=None, keep=True)
        return prediction.exact

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; keys and values of a prefix shared with the last call are not recomputed."""
        ids, past = self._checked(token_ids), self._past
        shared = _shared_prefix(past.ids, ids[:-1])
        # Keys were rotated for the context they were computed in; some kinds of RoPE turn them differently in another.
        if not self.spec.rope.turns_alike(len(past.ids), len(ids)):
            shared = 0
        past.cut(shared)
        model = self._forward(Work(0, None), keep=True)
        new = ids[shared:]
        batch = Batch(model.embed(new), [model.span(slice(0, len(new)), len(ids), past)])
        for _ in model.stages([batch]):
            pass
        past.ids = ids
        row: np.ndarray = model.logits(batch, slice(len(new) - 1, None))[0]
        return row

    def predictions(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        int8_run: int | None,
        progress: Progress | None = None,
        positions: Sequence[int] | None = None,
    ) -> Iterator[Predictions]:
        """Yield the predictions on each of the prompts' token ids, in order; see `OracleSession.predictions`.

        Weights of the blocks are dropped once they are used. The head, which every prompt needs anew, is kept if it is
        within the budget, else read for every prompt.
        """
        ids = [self._checked(prompt) for prompt in prompts]
        return self._predicted(ids, int8_run=int8_run, progress=progress, keep=False, positions=positions)

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage of the forward pass in order, float32.

        "embedding", "block 0", ... and "final norm" are [T, E], residual streams after that stage; "logits" [T, V].
        """
        ids = self._checked(token_ids)
        model = self._forward(Work(0, None), keep=True)
        rows = slice(0, len(ids))
        batch = Batch(model.embed(ids), [model.span(rows, len(ids))])
        stages = {}
        for stage in model.stages([batch]):
            stages[stage] = batch.x
        return stages | {"logits": model.logits(batch, rows)}

    def _forward(self, work: Work, *, keep: bool) -> ForwardPass:
        """The model's formulas; `keep` as in `ForwardPass`."""
        kind = ForwardPass if self.spec.latent is None else LatentForwardPass
        return kind(self.spec, self._weights, work, keep=keep)

    def _predicted(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        int8_run: int | None,
        progress: Progress | None,
        keep: bool,
        positions: Sequence[int] | None = None,
    ) -> Iterator[Predictions]:
        if not prompts:
            return
        arithmetics = (None,) if int8_run is None else (None, int8_run)
        work = Work(_multiplications(self.spec) * sum(map(len, prompts)) * len(arithmetics), progress)
        model = self._forward(work, keep=keep)
        embedded = model.embed([token for prompt in prompts for token in prompt])
        spans = [model.span(rows, rows.stop - rows.start) for rows in _consecutive(map(len, prompts))]
        batches = [Batch(embedded, spans, run) for run in arithmetics]
        for _ in model.stages(batches):
            pass
        for number, span in enumerate(spans, 1):
            work.begin(f"logits of prompt {number} of {len(spans)}")
            rows = span.rows if positions is None else span.rows.start + np.asarray(positions)
            # No name holds on to what is yielded: two prompts' logits would be in memory at a time.
            yield Predictions(
                exact=model.logits(batches[0], rows),
                rounded=model.logits(batches[1], rows) if int8_run is not None else None,
            )

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        """The ids as a list; a negative one would silently index from the end of the embedding table."""
        ids = [int(token) for token in token_ids]
        if not ids:
            raise BadOption("no token ids to run")
        for token in ids:
            if not 0 <= token < self.spec.vocab_size:
                raise BadOption(f"token id {token} is outside the vocabulary of {self.spec.vocab_size}")
        check_length(self.spec, len(ids))
        return ids


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements in common."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _consecutive(lengths: Iterable[int]) -> Iterator[slice]:
    """Slices of these lengths, each beginning where the last one ends."""
    return (slice(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0)))


def _multiplications(spec: ModelSpec) -> int:
    """By weights, of one token on its way through blocks and head."""
    blocks = sum(math.prod(slot.shape) for slot in spec.slots() if slot.layer is not None and len(slot.shape) == 2)
    return blocks + spec.vocab_size * spec.hidden_size

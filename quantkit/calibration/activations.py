"""The residual stream of the calibration sequences, carried through the model one block at a time.

Two streams run side by side: one through the original blocks, one through the blocks as quantized so far. For each
block `stages` yields what the inputs of each group of linear layers look like (q, k, v; then o; then gate, up; then
down) and how far their outputs have drifted from the original's; what the caller has put in place of a stage's
weights by then is what the next stage sees.

Memory: two streams and one stage's inputs, linear in the number of tokens, and one stage's statistics, which do not
grow with it. Results do not depend on the number of threads: see `quantkit.threads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.autocast import rounded_products
from quantkit.calibration.drift import Drift
from quantkit.calibration.folds import fold_names, folds_of, token_weights
from quantkit.calibration.samples import Samples
from quantkit.calibration.statistics import Counted, LayerStatistics, Rows, cross_products, input_statistics
from quantkit.errors import NonFiniteValues
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, read_float32
from quantkit.models.spec import EMBEDDING, LayerGroup, ModelSpec, Role
from quantkit.models.torch_model import Block, rotary_tables
from quantkit.tensors.views import TensorView
from quantkit.threads import torch_map

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Linear layers that read the same inputs.

    names, folds: what is in every fold (`quantkit.calibration.folds`), and statistics of its inputs.
    drift: None when the original stream is not followed, or there is no second fold to judge by.
    """

    roles: tuple[Role, ...]
    names: tuple[str, ...]
    folds: tuple[LayerStatistics, ...]
    drift: Drift | None


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What linear layers read: float32 [tokens, cols] of every sequence of every fold.

    Each is multiplied by the square root of what its tokens count.
    """

    roles: tuple[Role, ...]
    folds: tuple[list[Tensor], ...]


class HiddenStates:
    """Both residual streams, float32 [tokens, hidden] per sequence, in front of the next block.

    skip_positions: the first so many tokens of every sequence count no more than others. Their activations are hundreds
    of times larger and would decide every layer, so P-GPTQ (MiniCPM4 report 4.1.2) leaves them out. But then nothing
    holds what layers make of them, and a first token whose activations grow in one block to be taken back in another is
    predicted from what is left over (SmolLM2: KL 15 at that position). Here inputs longer than the others' mean are
    shrunk to it; drift and sensitivities leave them out.
    follow_original: whether the original stream is carried along. device: where all of it lies and is computed.
    bfloat16: whether layers and attention compute in it (`quantkit.calibration.autocast`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        samples: Samples,
        *,
        skip_positions: int = 0,
        follow_original: bool = True,
        threads: int = 1,
        device: torch.device = CPU,
        bfloat16: bool = False,
    ) -> None:
        self.spec: ModelSpec = checkpoint.spec
        self.threads = threads
        self.skip_positions = skip_positions
        self.device = device
        self.bfloat16 = bfloat16
        self._sequences = samples.sequences
        self.states = [x.to(device) for x in embedded(checkpoint, samples.sequences)]
        self.original = list(self.states) if follow_original else []
        self.folds = _folds(samples, skip_positions)
        self.counts = token_weights(samples, skip_positions)
        self.rotary = {length: rotary_tables(self.spec, 0, length, device) for length in {len(x) for x in self.states}}

    def begin_with(self, table: np.ndarray) -> None:
        """Before the first block: let the quantized stream begin with another embedding, float32 [vocab, hidden]."""
        rows = torch.from_numpy(table).to(self.device)
        self.states = [rows[torch.from_numpy(ids).to(self.device)] * self.spec.scale_emb for ids in self._sequences]

    def stages(
        self, block: Block, original: Block, importance: Mapping[Role, Sequence[Tensor]] | None = None
    ) -> Iterator[Stage]:
        """Move through one block.

        Before asking for the next stage the caller replaces the weights of a stage's roles in `block`, whose weights
        are those of `original` at first and must not share memory with them.

        `importance` tells, by the last layer of attention and of the MLP, how much each position of the first sequences
        counts in statistics, [tokens, 1] up to a factor; the others count 1, the mean of these.
        """
        for group, inputs in self._steps(block, original):
            given = (importance or {}).get(group.writer)
            yield self._stage(group, inputs, original, self._weights(given or ()))

    def inputs(self, block: Block) -> Iterator[Inputs]:
        """What each group of linear layers of `block` reads as its weights are now; moves nothing."""
        ahead = copy(self)
        ahead.original = []
        for group, (inputs, _) in ahead._steps(block, block):
            counted = [x[self.skip_positions :] * math.sqrt(a) for x, a in zip(inputs, self.counts, strict=True)]
            yield Inputs(group.roles, tuple(self._split(counted)))

    def squares(self, block: Block) -> Iterator[tuple[tuple[Role, ...], Tensor]]:
        """Move through one block; of each group of linear layers the sum of x² over all tokens, float64 [cols]."""
        for group, (inputs, _) in self._steps(block, block):
            yield group.roles, _squared(inputs)

    def each_squared(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of x² over all tokens, float64 [cols], of what `function` makes of the states as they are now."""
        return _squared(self._each(function, self.states))

    def advance(self, block: Block, original: Block) -> None:
        """Move through one block whose weights are all in place."""
        for _ in self._steps(block, original):
            pass

    def _steps(self, block: Block, original: Block) -> Iterator[tuple[LayerGroup, tuple[list[Tensor], list[Tensor]]]]:
        """Layers that read the same inputs, with these inputs."""
        inputs = (self.states, self.original)
        for number, group in enumerate(self.spec.groups):
            inputs = (
                self._each(self._reads(block, number), self.states, inputs[0]),
                self._each(self._reads(original, number), self.original, inputs[1]),
            )
            yield group, inputs
            if group.writes:
                self._add(inputs, block.layer(group.writer), original.layer(group.writer))

    def _reads(self, block: Block, group: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, before: block.reads(group, x, before, self.rotary[len(x)])

    def _add(
        self,
        inputs: tuple[list[Tensor], list[Tensor]],
        layer: Callable[[Tensor], Tensor],
        original: Callable[[Tensor], Tensor],
    ) -> None:
        scale = self.spec.residual_scale
        self.states = self._each(lambda r, x: r + layer(x) * scale, self.states, inputs[0])
        self.original = self._each(lambda r, x: r + original(x) * scale, self.original, inputs[1])

    def _weights(self, importance: Sequence[Tensor]) -> list[Tensor | float]:
        """The square root of what every position after the skipped ones counts, for every sequence."""
        counted = [x[self.skip_positions :] for x in importance]
        mean = float(torch.cat(counted).mean()) if counted else 0.0
        if not 0 < mean < math.inf:  # no positions, no gradients, or some that are no numbers
            counted = []
        roots = [math.sqrt(count) for count in self.counts]
        return [*((x / mean).sqrt() * root for x, root in zip(counted, roots, strict=False)), *roots[len(counted) :]]

    def _stage(
        self,
        group: LayerGroup,
        inputs: tuple[list[Tensor], list[Tensor]],
        original: Block,
        weights: list[Tensor | float],
    ) -> Stage:
        seen = [Counted(x, self.skip_positions, w) for x, w in zip(inputs[0], weights, strict=True)]
        drift = None
        if self.original and len(self.folds) > 1:
            drift = self._drift(group, inputs, seen, original, weights)
        cols = inputs[0][0].shape[1]
        counted = [
            _with_first(x, self.skip_positions, w, math.sqrt(count))
            for x, w, count in zip(inputs[0], weights, self.counts, strict=True)
        ]
        folds = tuple(input_statistics(part, cols, self.threads, self.device) for part in self._split(counted))
        return Stage(group.roles, tuple(self.folds), folds, drift)

    def _drift(
        self,
        group: LayerGroup,
        inputs: tuple[list[Tensor], list[Tensor]],
        seen: list[Counted],
        original: Block,
        weights: list[Tensor | float],
    ) -> Drift:
        """Of the outputs of layers that write to the residual stream; of the inputs of the others."""
        moved: Sequence[Rows]
        if group.writes:
            missing = self._missing(original.weight(group.writer))
            moved = self._each(missing, *inputs, self.states, self.original, weights)
        else:
            skip, triples = self.skip_positions, zip(*inputs, weights, strict=True)
            moved = [Counted(wanted, skip, w, minus=x) for x, wanted, w in triples]
        pairs = zip(self._split(moved), self._split(seen), strict=True)
        return Drift(tuple(cross_products(d, x, self.threads) for d, x in pairs), not group.writes)

    def _missing(self, W: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | float], Tensor]:
        """What a layer that writes to the residual stream lacks at its output, the stream's own drift included.

        Of its inputs and the original's, both streams, and what positions count.
        """
        skip, scale = self.skip_positions, self.spec.residual_scale
        return lambda x, wanted, stream, followed, w: (
            ((wanted - x)[skip:] @ W.T + (followed - stream)[skip:] / scale) * w
        )

    def _split(self, rows: Sequence[Item]) -> list[list[Item]]:
        """The sequences of every fold."""
        return [[rows[i] for i in fold] for fold in self.folds.values()]

    def _each(self, function: Callable[..., Tensor], *columns: Sequence[Tensor | float]) -> list[Tensor]:
        """function(column[i], ...) for every sequence i, float32, each on one thread."""

        def computed(values: tuple[Tensor | float, ...]) -> Tensor:
            with rounded_products(self.device, bfloat16=self.bfloat16):
                return function(*values).float()

        return torch_map(computed, zip(*columns, strict=True), self.threads)


def _squared(rows: Sequence[Tensor]) -> Tensor:
    """Σ x² of float32 rows [tokens, cols] of every sequence: float64 [cols], one sequence after the other."""
    total = torch.zeros(rows[0].shape[1], dtype=torch.float64, device=rows[0].device)
    for x in rows:
        total += x.square().sum(0, dtype=torch.float64)
    return total


def _folds(samples: Samples, skip_positions: int) -> dict[str, list[int]]:
    """By its name, the numbers of every fold's sequences that have tokens after the skipped ones."""
    found: dict[str, list[int]] = {}
    names = fold_names(samples)
    for number, (fold, sequence) in enumerate(zip(folds_of(samples), samples.sequences, strict=True)):
        if len(sequence) > skip_positions:
            found.setdefault(names[fold], []).append(number)
    return {name: found[name] for name in names if name in found} or {names[0]: [0]}


def _with_first(x: Tensor, skip: int, weight: Tensor | float, root: float) -> Counted:
    """Inputs [tokens, cols] of a sequence as its statistics see them: the first `skip` shrunk to the length of others.

    weight: of the others, [tokens - skip, 1] or a number. root: the square root of what the sequence's tokens count.
    """
    first, others = x[:skip], x[skip:]
    if not skip or not len(others):
        return Counted(x, skip, weight)
    typical = others.square().sum(-1).mean().sqrt()
    shrunk = (typical / first.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0) * root
    behind = weight if isinstance(weight, Tensor) else x.new_full((len(others), 1), weight)
    return Counted(x, 0, torch.cat([shrunk, behind.to(shrunk)]))


def embedded(checkpoint: Checkpoint, sequences: Sequence[np.ndarray]) -> list[Tensor]:
    """Residual states before the first block, float32 [tokens, hidden] per sequence; reads the table in chunks."""
    table = checkpoint.weights[EMBEDDING]
    wanted = np.unique(np.concatenate(sequences))
    rows = np.empty((len(wanted), checkpoint.spec.hidden_size), np.float32)
    start = 0
    for chunk in table.chunks() if isinstance(table, TensorView) else (read_float32(table),):
        here = slice(*np.searchsorted(wanted, (start, start + len(chunk))))
        rows[here] = chunk[wanted[here] - start]
        start += len(chunk)
    if not np.isfinite(rows).all():
        raise NonFiniteValues(f"{table.name}: the weight holds NaN or infinity")
    rows *= np.float32(checkpoint.spec.scale_emb)
    table_rows = torch.from_numpy(rows)
    return [table_rows[torch.from_numpy(np.searchsorted(wanted, sequence))] for sequence in sequences]

"""What a graph remembers of one sequence, in buffers that are larger than it, and how a run writes into them.

    inputs     past_length int64 [1], tokens before this run
               prompt_length int64 [1], length of the prompt that its tokens are a part of; 0 = they are decoded
               past_key_values.I.key, .value [G, capacity, D], keys turned
               past_key_values.I.fine [G, capacity / kernel_stride, D], means of keys
               past_key_values.I.coarse [G, rows, D], means of four times as many
    outputs    present.I.*, the same with what the run adds

The capacity is a multiple of `block_size`, and rows of `coarse` are one at least and enough. What lies behind the
tokens may be any numbers. Input and output of a part may be one buffer, so every other operator reads the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.onnx.elements import INT64
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.graph.remembered import PAST, PRESENT, Remembered
from quantkit.models.spec import COARSE, ModelSpec, SparseSpec

PAST_LENGTH, PROMPT_LENGTH = "past_length", "prompt_length"
FINE, COARSE_MEANS = "fine", "coarse"
ROWS: Mapping[str, str] = {
    "key": "capacity", "value": "capacity", FINE: "fine_capacity", COARSE_MEANS: "coarse_capacity"
}  # fmt: skip
"""Parts of a layer's memory, and what the length of each is called."""


Unturned = Callable[[str, str], str]
"""Gives keys [G, n, kernel, D] as they were before rotation, from these and their positions [n, kernel]."""


def sparse_memory(spec: ModelSpec) -> Remembered:
    """How it is called and shaped; a run has one sequence."""
    shapes = {part: (spec.num_key_value_heads, rows, spec.head_dim) for part, rows in ROWS.items()}
    return Remembered(1, {PAST_LENGTH: (1,), PROMPT_LENGTH: (1,)}, shapes, shapes)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a layer with this run's tokens: the names of its parts."""

    keys: str
    values: str
    fine: str
    coarse: str


class Means:
    """One kind of means: of `kernel` keys, `stride` apart; mean i is of the keys from i * stride on."""

    def __init__(self, graph: Graph, kernel: int, stride: int) -> None:
        self._graph, self._kernel, self._stride = graph, kernel, stride

    def count(self, length: str) -> str:
        """Means of so many tokens, int64 of any shape."""
        graph = self._graph
        whole = graph.node("Sub", (length, graph.integers(self._kernel - self._stride)))
        return graph.node("Div", (graph.node("Max", (whole, graph.integers(0))), graph.integers(self._stride)))

    def new(self, past: str, total: str) -> tuple[str, str]:
        """The means that a run completes: their numbers [n], and the positions of their keys [n, kernel]."""
        graph, zero = self._graph, self._graph.integers(0)
        first, last = (graph.node("Squeeze", (self.count(length), zero)) for length in (past, total))
        numbers = graph.node("Range", (first, last, graph.integer(1)))
        starts = graph.node("Mul", (numbers, graph.integers(self._stride)))
        within = graph.node("Range", (graph.integer(0), graph.integer(self._kernel), graph.integer(1)))
        return numbers, graph.node("Add", (graph.node("Unsqueeze", (starts, graph.integers(1))), within))

    def unseen(self, prompt: str) -> str:
        """1 where the last mean is not seen in a prompt of this length [1], as the published kernel rounds; else 0."""
        graph = self._graph
        left = graph.node("Mod", (prompt, graph.integers(self._stride)))
        odd = graph.node("Equal", (left, graph.integers(self._stride - 1)))
        read = graph.node("Greater", (prompt, graph.integers(0)))
        return graph.node("Cast", (graph.node("And", (odd, read)),), to=INT64.code)


class Memory:
    """The memory of every layer, and where a run writes into it."""

    def __init__(self, graph: Graph, sparse: SparseSpec, groups: int, new: str) -> None:
        self._graph, self._groups = graph, groups
        self.past, self.new, self.prompt = PAST_LENGTH, new, PROMPT_LENGTH
        self.total = graph.node("Add", (PAST_LENGTH, new))
        self.fine = Means(graph, sparse.kernel_size, sparse.kernel_stride)
        self.coarse = Means(graph, COARSE * sparse.kernel_size, COARSE * sparse.kernel_stride)
        start, stop = (graph.node("Squeeze", (x, graph.integers(0))) for x in (PAST_LENGTH, self.total))
        self.positions = graph.node("Range", (start, stop, graph.integer(1)))
        self._places = self._by_group(self.positions, axis=1)
        self._means = {
            part: (self._by_group(numbers, axis=0), tokens)
            for part, (numbers, tokens) in (
                (FINE, self.fine.new(PAST_LENGTH, self.total)),
                (COARSE_MEANS, self.coarse.new(PAST_LENGTH, self.total)),
            )
        }

    def _by_group(self, rows: str, *, axis: int) -> str:
        """Where ScatterND writes rows [n] of every group: [G, n, 2], or [n, G, 2] where the groups' axis is 1."""
        graph, groups = self._graph, np.arange(self._groups)
        sizes = [graph.integers(self._groups), graph.node("Shape", (rows,))]
        shape = graph.node("Concat", sizes if axis == 0 else sizes[::-1], axis=0)
        columns = (
            graph.constant(np.expand_dims(groups, 1 - axis)),
            graph.node("Unsqueeze", (rows, graph.integers(axis))),
        )
        pair = [graph.node("Unsqueeze", (graph.node("Expand", (x, shape)), graph.integers(-1))) for x in columns]
        return graph.node("Concat", pair, axis=-1)

    def extended(self, layer: int, k: str, v: str, unturned: Unturned | None) -> Kept:
        """Remember keys and values [T, G, D]; the means are of what `unturned` makes of the keys."""
        keys = self._written(layer, "key", self._places, k)
        values = self._written(layer, "value", self._places, v)
        means = [self._written(layer, part, *self._mean(part, keys, unturned)) for part in (FINE, COARSE_MEANS)]
        return Kept(keys, values, *means)

    def _mean(self, part: str, keys: str, unturned: Unturned | None) -> tuple[str, str]:
        """Where the new means are written, and what, [G, n, D]."""
        graph, (places, tokens) = self._graph, self._means[part]
        taken = graph.float32(graph.node("Gather", (keys, tokens), axis=1))
        if unturned is not None:
            taken = unturned(taken, tokens)
        mean = graph.node("ReduceMean", (taken, graph.integers(2)), keepdims=0)
        return places, graph.narrowed(mean)

    def _written(self, layer: int, part: str, places: str, rows: str) -> str:
        given, made = PAST % (layer, part), PRESENT % (layer, part)
        return self._graph.node("ScatterND", (given, places, rows), made)

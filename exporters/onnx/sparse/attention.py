"""Attention of one layer: dense while a text is short, then to the blocks that each token and group of heads chose.

Keys are the left factor of the products that make scores, so that queries are transposed in their place. A single token
reads the buffers as they are; several take what is in them, and go through in tiles.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.onnx.elements import FLOAT, INT64
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.sparse.memory import Kept, Memory
from quantkit.exporters.onnx.sparse.selection import FLOAT32, LOWEST, Selection
from quantkit.exporters.onnx.sparse.tiles import Tiles
from quantkit.models.spec import SparseSpec

SCORES = 1 << 24
"""Scores of all heads that a tile makes at a time: 64 MiB, of which there are a few copies."""
TOKENS = 1
"""Tokens of a prompt whose blocks are gathered at a time: few, so that these stay in a core's cache."""


class SparseAttention:
    """Of one graph with `heads` heads of `head_dim` channels."""

    def __init__(
        self, graph: Graph, sparse: SparseSpec, memory: Memory, *, heads: int, groups: int, head_dim: int
    ) -> None:
        self._graph, self._sparse, self._memory = graph, sparse, memory
        self._heads, self._groups, self._size = heads, groups, head_dim
        self._tiles = Tiles(graph, memory.new)
        self._selection = Selection(graph, sparse, memory)
        decoded = graph.node("Equal", (memory.prompt, graph.integers(0)))
        length = graph.node("Where", (decoded, memory.total, memory.prompt))
        self._sparsely = graph.node("GreaterOrEqual", (length, graph.integers(sparse.dense_len)))
        self._single = graph.node("Equal", (memory.new, graph.integers(1)))

    def mixed(self, q: str, by_q: str, kept: Kept) -> str:
        """What the tokens mix, float32 [T, H * D], for q [T, G, R, D] times D^-0.5; they choose by `by_q`."""
        graph = self._graph

        def sparsely() -> str:
            return graph.branched(
                self._single, lambda: self._decoded(q, by_q, kept), lambda: self._read(q, by_q, kept), FLOAT
            )

        mixed = graph.branched(self._sparsely, sparsely, lambda: self._densely(q, kept), FLOAT)
        return graph.node("Reshape", (mixed, graph.integers(-1, self._heads * self._size)))

    def _decoded(self, q: str, by_q: str, kept: Kept) -> str:
        """Of a single token."""
        chosen = self._selection.chosen(by_q, self._memory.positions, kept.fine, kept.coarse)
        return self._attended(q, self._memory.positions, chosen, kept)

    def _read(self, q: str, by_q: str, kept: Kept) -> str:
        """Of several tokens."""
        graph, memory, sparse = self._graph, self._memory, self._sparse
        blocks = self._blocks()
        rows = graph.node("Mul", (blocks, graph.integers(sparse.block_size // sparse.kernel_stride)))
        fine = self._first(kept.fine, rows)
        count = graph.node("Max", (memory.coarse.count(memory.total), graph.integers(1)))
        coarse = self._first(kept.coarse, count)

        def choose(tile: str) -> str:
            return self._selection.chosen(self._rows(by_q, tile), self._rows(memory.positions, tile), fine, coarse)

        chosen = self._tiles.each(self._most(rows), choose, INT64)

        def attend(tile: str) -> str:
            return self._attended(
                self._rows(q, tile), self._rows(memory.positions, tile), self._rows(chosen, tile), kept
            )

        return self._all(self._tiles.each(graph.integers(TOKENS), attend, FLOAT))

    def _densely(self, q: str, kept: Kept) -> str:
        """Of any number of tokens to all that are not behind them."""
        graph, memory = self._graph, self._memory
        keys, values = (graph.float32(self._first(x, memory.total)) for x in (kept.keys, kept.values))
        stop = graph.node("Squeeze", (memory.total, graph.integers(0)))
        tokens = graph.node("Range", (graph.integer(0), stop, graph.integer(1)))

        def attend(tile: str) -> str:
            turned = graph.node("Transpose", (self._rows(q, tile),), perm=(1, 3, 0, 2))  # [G, D, t, R]
            scores = graph.node("MatMul", (keys, graph.node("Reshape", (turned, graph.integers(0, 0, -1)))))
            by_token = graph.node("Concat", (graph.node("Shape", (turned,), start=2), memory.total), axis=0)
            by_token = graph.node("Concat", (graph.integers(self._groups), by_token), axis=0)
            scores = graph.node("Reshape", (graph.node("Transpose", (scores,), perm=(0, 2, 1)), by_token))
            own = graph.node("Unsqueeze", (self._rows(memory.positions, tile), graph.integers(1, 2)))
            shares = self._shares(scores, graph.node("LessOrEqual", (tokens, own)))
            flat = graph.node("Concat", (graph.integers(0, -1), memory.total), axis=0)
            mixed = graph.node("MatMul", (graph.node("Reshape", (shares, flat)), values))
            shape = graph.integers(self._groups, -1, self._heads // self._groups, self._size)
            return graph.node("Transpose", (graph.node("Reshape", (mixed, shape)),), perm=(1, 0, 2, 3))

        return self._all(self._tiles.each(self._most(memory.total), attend, FLOAT))

    def _attended(self, q: str, positions: str, chosen: str, kept: Kept) -> str:
        """[t, G, R, D] of q [t, G, R, D] at `positions` [t], over chosen blocks [t, G, k]."""
        graph, size = self._graph, self._sparse.block_size
        keys, values = (self._gathered(x, chosen) for x in (kept.keys, kept.values))
        scores = graph.node("MatMul", (keys, graph.node("Transpose", (q,), perm=(0, 1, 3, 2))))  # [t, G, k * size, R]
        starts = graph.node("Mul", (chosen, graph.integers(size)))
        within = graph.constant(np.arange(size))
        tokens = graph.node("Add", (graph.node("Unsqueeze", (starts, graph.integers(3))), within))
        tokens = graph.node("Reshape", (tokens, graph.integers(0, self._groups, 1, -1)))
        own = graph.node("Unsqueeze", (positions, graph.integers(1, 2, 3)))
        seen = graph.node("LessOrEqual", (tokens, own))
        shares = self._shares(graph.node("Transpose", (scores,), perm=(0, 1, 3, 2)), seen)
        return graph.node("MatMul", (shares, values))

    def _shares(self, scores: str, seen: str) -> str:
        """Softmax along the last axis."""
        graph = self._graph
        allowed = graph.node("Where", (seen, scores, graph.number(LOWEST, FLOAT32)))
        return graph.node("Softmax", (allowed,), axis=-1)

    def _gathered(self, kept: str, chosen: str) -> str:
        """Chosen blocks [t, G, k] of rows [G, capacity, D], one behind the other: float32 [t, G, k * size, D]."""
        graph, size = self._graph, self._sparse.block_size
        capacity = graph.node("Shape", (kept,), start=1, end=2)
        per_group = graph.node("Div", (capacity, graph.integers(size)))
        groups = graph.constant(np.arange(self._groups).reshape(-1, 1))
        numbers = graph.node("Add", (chosen, graph.node("Mul", (groups, per_group))))
        blocks = graph.node("Reshape", (kept, graph.integers(-1, size * self._size)))
        rows = graph.node("Gather", (blocks, numbers), axis=0)
        return graph.float32(graph.node("Reshape", (rows, graph.integers(0, self._groups, -1, self._size))))

    def _rows(self, x: str, tile: str) -> str:
        return self._graph.node("Gather", (x, tile), axis=0)

    def _first(self, x: str, count: str) -> str:
        """The first rows [G, count, D] of each group."""
        graph = self._graph
        return graph.node("Slice", (x, graph.integers(0), count, graph.integers(1)))

    def _all(self, mixed: str) -> str:
        """Without what the last tile repeated."""
        graph = self._graph
        return graph.node("Slice", (mixed, graph.integers(0), self._memory.new, graph.integers(0)))

    def _blocks(self) -> str:
        """Blocks that have tokens, [1]."""
        graph, size = self._graph, self._sparse.block_size
        return graph.node(
            "Div", (graph.node("Add", (self._memory.total, graph.integers(size - 1))), graph.integers(size))
        )

    def _most(self, keys: str) -> str:
        """Tokens whose scores with so many keys [1] are few enough."""
        graph = self._graph
        most = graph.node("Div", (graph.integers(SCORES // self._heads), keys))
        return graph.node("Max", (most, graph.integers(1)))

"""Stage one: blocks are scored by means of their keys, and the best are chosen for each token and group of heads.

    score of a mean    sum over the R heads of exp(q k1 - log of the sum over j of exp(q k2_j))
    score of a block   the best of the means that begin in it, and of the one before these

k1 are the fine means, k2 the coarse ones. What a token does not see scores 0. Blocks that are always chosen score
infinity, those behind the token its negative; of equal ones TopK takes the first.
"""

from __future__ import annotations

import numpy as np

from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.sparse.memory import Means, Memory
from quantkit.models.spec import SparseSpec

FLOAT32 = np.dtype(np.float32)
LOWEST = float(np.finfo(np.float32).min)


class Selection:
    """Of one graph: `memory` counts its means."""

    def __init__(self, graph: Graph, sparse: SparseSpec, memory: Memory) -> None:
        self._graph, self._sparse, self._memory = graph, sparse, memory
        self._fewer = {means: means.unseen(memory.prompt) for means in (memory.fine, memory.coarse)}

    def chosen(self, q: str, positions: str, fine: str, coarse: str) -> str:
        """Numbers of the chosen blocks, int64 [t, G, k], of tokens at `positions` [t]; some are behind a token.

        q: [t, G, R, D], times D^-0.5. fine, coarse: means [G, n, D], of which `positions` says what is seen; those of
        `fine` are of whole blocks.
        """
        graph, sparse = self._graph, self._sparse
        scores = self._block_scores(self._mean_scores(q, positions, fine, coarse))
        blocks = graph.node("Shape", (scores,), start=2)
        block = self._numbers(blocks)
        own = graph.node("Div", (positions, graph.integers(sparse.block_size)))
        own = graph.node("Unsqueeze", (own, graph.integers(1, 2)))  # [t, 1, 1]
        window = graph.node("GreaterOrEqual", (block, graph.node("Sub", (own, graph.integers(sparse.local_blocks)))))
        first = graph.node("Less", (block, graph.integers(sparse.init_blocks)))
        always = graph.node("Or", (window, first))
        infinite = (graph.number(sign * np.inf, FLOAT32) for sign in (1, -1))
        scores = graph.node("Where", (always, next(infinite), scores))
        scores = graph.node("Where", (graph.node("Greater", (block, own)), next(infinite), scores))
        count = graph.node("Min", (graph.integers(sparse.topk + sparse.local_blocks), blocks))
        values = f"{scores}.best"
        graph.nodes("TopK", (scores, count), (values, f"{scores}.chosen"), axis=-1)
        return f"{scores}.chosen"

    def _mean_scores(self, q: str, positions: str, fine: str, coarse: str) -> str:
        """[t, G, n], 0 where a token does not see the mean."""
        graph, memory = self._graph, self._memory
        turned = graph.node("Transpose", (q,), perm=(1, 3, 0, 2))  # [G, D, t, R]
        shape = graph.node("Shape", (turned,), start=2)
        flat = graph.node("Reshape", (turned, graph.integers(0, 0, -1)))
        length = graph.node("Add", (positions, graph.integers(1)))
        over, (seen, some) = self._products(coarse, flat, shape), self._seen(memory.coarse, length, coarse)
        column = graph.node("Unsqueeze", (seen, graph.integers(2)))  # [n, t, 1]
        over = graph.node("Where", (column, over, graph.number(LOWEST, FLOAT32)))
        highest = graph.node("ReduceMax", (over, graph.integers(1)), keepdims=1)
        shares = graph.node("Exp", (graph.node("Sub", (over, highest)),))
        total = graph.node("ReduceSum", (shares, graph.integers(1)), keepdims=1)
        level = graph.node("Add", (highest, graph.node("Log", (total,))))  # [G, 1, t, R]
        scores = graph.node("Exp", (graph.node("Sub", (self._products(fine, flat, shape), level)),))
        scores = graph.node("ReduceSum", (scores, graph.integers(3)), keepdims=0)
        seen, _ = self._seen(memory.fine, length, fine)
        scores = graph.node("Where", (graph.node("And", (seen, some)), scores, graph.number(0.0, FLOAT32)))
        return graph.node("Transpose", (scores,), perm=(2, 0, 1))

    def _products(self, means: str, q: str, shape: str) -> str:
        """Means [G, n, D] times q [G, D, t * R], as [G, n, t, R]."""
        graph = self._graph
        shape = graph.node("Concat", (graph.integers(0, 0), shape), axis=0)
        return graph.node("Reshape", (graph.node("MatMul", (graph.float32(means), q)), shape))

    def _seen(self, kind: Means, length: str, means: str) -> tuple[str, str]:
        """Which means the last of `length` [t] tokens see, bool [n, t], and which of them see any, [t]."""
        graph = self._graph
        count = graph.node("Sub", (kind.count(length), self._fewer[kind]))
        number = self._numbers(graph.node("Shape", (means,), start=1, end=2))
        seen = graph.node("Less", (graph.node("Unsqueeze", (number, graph.integers(1))), count))
        return seen, graph.node("Greater", (count, graph.integers(0)))

    def _numbers(self, count: str) -> str:
        """0, 1, ... of so many [1]."""
        graph = self._graph
        return graph.node(
            "Range", (graph.integer(0), graph.node("Squeeze", (count, graph.integers(0))), graph.integer(1))
        )

    def _block_scores(self, scores: str) -> str:
        """[t, G, n] as [t, G, B]."""
        each = self._sparse.block_size // self._sparse.kernel_stride
        return self._graph.node("MaxPool", (scores,), kernel_shape=(each + 1,), strides=(each,), pads=(1, 0))

"""Tokens of a run a few at a time, so that what they need together has a bound, however many there are."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.exporters.onnx.elements import Element
from quantkit.exporters.onnx.graph.builder import Graph


class Tiles:
    """Of the `new` tokens of a run, int64 [1]."""

    def __init__(self, graph: Graph, new: str) -> None:
        self._graph, self._new = graph, new

    def each(self, most: str, make: Callable[[str], str], element: Element) -> str:
        """What `make` adds for rows [t] of the tokens, at most `most` of them (int64 [1]), joined: [at least T, ...].

        All tiles are of a size. Where that leaves rows over, the last tile repeats the last token.
        """
        graph, one, zero = self._graph, self._graph.integers(1), self._graph.integers(0)
        times = self._quotient(self._new, most)
        size = self._quotient(self._new, times)
        count, width = (graph.node("Squeeze", (x, zero)) for x in (times, size))
        steps = graph.node("Range", (graph.integer(0), width, graph.integer(1)))
        last = graph.node("Sub", (self._new, one))

        def tile(number: str) -> str:
            rows = graph.node("Add", (graph.node("Mul", (number, size)), steps))
            return make(graph.node("Min", (rows, last)))

        stacked = graph.repeated(count, tile, element)
        shape = graph.node("Concat", (graph.integers(-1), graph.node("Shape", (stacked,), start=2)), axis=0)
        return graph.node("Reshape", (stacked, shape))

    def _quotient(self, one: str, other: str) -> str:
        """Rounded up."""
        graph = self._graph
        more = graph.node("Sub", (graph.node("Add", (one, other)), graph.integers(1)))
        return graph.node("Div", (more, other))

"""A graph of the IR that runs: its layers in an order in which each finds its inputs, and the state between runs.

What follows from constants alone, such as a weight that is unpacked, is kept once it was needed, up to a budget of
bytes. Every other value lives until its last reader has run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.errors import EngineFailed
from quantkit.files.source_file import SourceFile
from quantkit.runtimes.openvino_numpy.constants import constant
from quantkit.runtimes.openvino_numpy.document import Layer, Port, read_document
from quantkit.runtimes.openvino_numpy.operators import OPERATORS

BUDGET = 2 << 30
MAX_TEXT = 64 << 20
INPUT, READ, ASSIGN, RESULT = "Parameter", "ReadValue", "Assign", "Result"

Values = dict[Port, np.ndarray]


class Graph:
    """The graph in the files `xml` and `weights`; `budget`: bytes of unpacked constants that stay between runs.

    Raises:
        MalformedFile: no graph; when they are needed, constants that are not in the file.
        EngineFailed: an operator that is not known, an input that nothing gives, layers in a circle.
    """

    def __init__(self, xml: SourceFile, weights: SourceFile, *, budget: int = BUDGET) -> None:
        self._path = xml.path
        self._weights = weights
        self._free = budget
        document = read_document(xml.read_all(MAX_TEXT), str(xml.path))
        self._layers = document.layers
        self._sources = {id_: self._ports_before(layer, document.edges) for id_, layer in self._layers.items()}
        self._order = self._sorted()
        fixed = self._fixed()
        self._moving = [layer for layer in self._order if layer.id not in fixed]
        self._from_constants = {port for layer in self._moving for port in self._sources[layer.id] if port[0] in fixed}
        self._kept: Values = {}
        self._state: dict[str, np.ndarray] = {}

    def reset_state(self) -> None:
        """Begin anew: every variable takes its first value again."""
        self._state = {}

    def run(self, inputs: Mapping[str, np.ndarray], wanted: str) -> np.ndarray:
        """The value called `wanted` for inputs by name; the state moves on.

        Raises:
            EngineFailed: an input that is not given, or values that an operator does not take.
        """
        values: Values = {}
        state: dict[str, np.ndarray] = {}
        found: np.ndarray | None = None
        uses = Counter(port for layer in self._moving for port in self._sources[layer.id])
        for layer in self._moving:
            ports = self._sources[layer.id]
            given = [self._unpacked(port) if port in self._from_constants else values[port] for port in ports]
            if layer.type == ASSIGN:
                state[layer.data.get("variable_id", "")] = given[0]
            for name, value in zip(layer.outputs, self._computed(layer, given, inputs), strict=False):
                values[layer.id, name] = value
                found = value if layer.names.get(name) == wanted else found
            for port in ports:
                uses[port] -= 1
                if not uses[port]:
                    values.pop(port, None)
        if found is None:
            raise EngineFailed(f"{self._path}: there is no value called {wanted!r}")
        self._state |= state
        return found

    def _unpacked(self, port: Port) -> np.ndarray:
        """A value that follows from constants alone."""
        if port in self._kept:
            return self._kept[port]
        behind, waiting = set(), [port[0]]
        while waiting:
            id_ = waiting.pop()
            if id_ not in behind:
                behind.add(id_)
                waiting += [source for source, _ in self._sources[id_]]
        values: Values = {}
        for layer in self._order:
            if layer.id in behind:
                given = [values[source] for source in self._sources[layer.id]]
                outputs = self._computed(layer, given, {})
                values |= {(layer.id, name): value for name, value in zip(layer.outputs, outputs, strict=False)}
        if port not in values:
            raise EngineFailed(f"{self._path}: layer {port[0]!r} has no output {port[1]!r}")
        if values[port].nbytes <= self._free:
            self._free -= values[port].nbytes
            self._kept[port] = values[port]
        return values[port]

    def _computed(
        self, layer: Layer, given: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        try:
            if layer.type == "Const":
                return [constant(layer.data, self._weights)]
            if layer.type == INPUT:
                return [inputs[name] for name in layer.names.values()]
            if layer.type == READ:
                return [self._state.get(layer.data["variable_id"], given[0])]
            if layer.type in (ASSIGN, RESULT):
                return []
            return OPERATORS[layer.type](layer.data, given)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise EngineFailed(f"{self._path}: {layer.type} {layer.name[:80]!r}: {error!r}") from error

    def _ports_before(self, layer: Layer, edges: Mapping[Port, Port]) -> list[Port]:
        """What the inputs of `layer` read."""
        if layer.type not in OPERATORS and layer.type not in ("Const", INPUT, READ, ASSIGN, RESULT):
            raise EngineFailed(f"{self._path}: there is no operator {layer.type[:80]!r} here")
        ports = [edges.get((layer.id, port), ("", "")) for port in layer.inputs]
        for id_, port in ports:
            if id_ not in self._layers or port not in self._layers[id_].outputs:
                raise EngineFailed(f"{self._path}: {layer.type} {layer.name[:80]!r} has an input that nothing gives")
        return ports

    def _sorted(self) -> list[Layer]:
        """Every layer behind those whose outputs it reads."""
        waiting = {id_: len(ports) for id_, ports in self._sources.items()}
        readers: dict[str, list[str]] = {id_: [] for id_ in self._layers}
        for id_, ports in self._sources.items():
            for source, _ in ports:
                readers[source].append(id_)
        ready = [id_ for id_, count in waiting.items() if not count]
        order = []
        while ready:
            id_ = ready.pop()
            order.append(self._layers[id_])
            for reader in readers[id_]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        if len(order) != len(self._layers):
            raise EngineFailed(f"{self._path}: layers read each other in a circle")
        return order

    def _fixed(self) -> set[str]:
        """The layers that follow from constants alone."""
        fixed: set[str] = set()
        for layer in self._order:
            sources = self._sources[layer.id]
            if layer.type not in (INPUT, READ) and all(id_ in fixed for id_, _ in sources):
                fixed.add(layer.id)
        return fixed

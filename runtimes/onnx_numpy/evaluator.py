"""Computes a graph: its nodes in order, each by the function of its operator, values dropped after their last use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import EngineFailed, MalformedFile, UnsupportedModel, about
from quantkit.runtimes.onnx_numpy.arithmetic import ARITHMETIC
from quantkit.runtimes.onnx_numpy.attention import ATTENTION
from quantkit.runtimes.onnx_numpy.call import Call, Operators
from quantkit.runtimes.onnx_numpy.graph import Graph, Model, Node, StoredTensor
from quantkit.runtimes.onnx_numpy.quantized import QUANTIZED
from quantkit.runtimes.onnx_numpy.reductions import REDUCTIONS
from quantkit.runtimes.onnx_numpy.shapes import SHAPES
from quantkit.runtimes.onnx_numpy.stored_tensors import DTYPES, StoredTensors, stored_bytes

OPERATORS: Operators = {**ARITHMETIC, **SHAPES, **REDUCTIONS, **QUANTIZED, **ATTENTION}
OPSETS = {"": range(13, 29), "com.microsoft": range(1, 2)}
"""Versions of the domains whose operators are those here."""
KEPT_BYTES = 2 << 30
"""Of stored tensors that stay in memory between runs; others are read anew."""
MOST_HELD = 12 << 30
"""Bytes of all values of a run at a time."""
BRANCHES = {"then_branch", "else_branch"}
GRAPHS = ("If", "Loop")
"""Operators that hold graphs."""
MOST_TIMES = 1 << 20
"""How often a loop may go round."""


class Evaluator:
    """A model whose stored tensors lie in `folder`.

    Raises:
        UnsupportedModel: an operator, or a version of the operators, that is not evaluated, by name.
        MalformedFile: nodes that are in no order in which they can be computed.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        for domain, version in model.opsets.items():
            if domain in OPSETS and version not in OPSETS[domain]:
                raise UnsupportedModel(f"operators {domain or 'ai.onnx'} of version {version} are not evaluated")
        self._model = model
        self._stored = StoredTensors(folder)
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEPT_BYTES
        self._check(model.graph, set(model.graph.inputs))

    @property
    def inputs(self) -> Mapping[str, np.dtype]:
        """Names of what must be given, and the dtypes; float32 where the graph does not say."""
        return {name: DTYPES.get(kind, DTYPES[1]) for name, kind in self._model.graph.inputs.items()}

    def run(self, given: Mapping[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """The values called `wanted`, outputs of the graph or of any node, from those of its inputs.

        Raises:
            EngineFailed: an input that is not given, or a value that there is not.
            MalformedFile, UnsupportedModel: what cannot be computed, with the node's name.
        """
        made = {name for node in self._model.graph.nodes for name in node.outputs}
        for names, there in ((self.inputs, given), (wanted, made)):
            absent = [name for name in names if name not in there]
            if absent:
                raise EngineFailed(f"the graph has no value called {absent[0]!r}, or is not given one")
        return self._run(self._model.graph, dict(given), wanted)

    def _check(self, graph: Graph, known: set[str]) -> None:
        """Every node is of a known operator and reads what is there by then; every name is made once."""
        seen = known | set(graph.initializers)
        for tensor in graph.initializers.values():
            stored_bytes(tensor)
        for node in graph.nodes:
            if node.op_type not in GRAPHS and (node.domain, node.op_type) not in OPERATORS:
                raise UnsupportedModel(f"{node}: such operators are not evaluated")
            for name in filter(None, node.inputs):
                if name not in seen:
                    raise MalformedFile(f"{node} reads {name!r}, which no node before it makes")
            for branch in _branches(node):
                self._check(branch, seen | set(branch.inputs))
            for name in filter(None, node.outputs):
                if name in seen:
                    raise MalformedFile(f"{node} makes {name!r}, which is there already")
                seen.add(name)
        absent = [name for name in graph.outputs if name not in seen]
        if absent:
            raise MalformedFile(f"the graph has an output {absent[0]!r} that no node makes")

    def _run(self, graph: Graph, values: dict[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        uses = Counter(name for node in graph.nodes for name in _reads(node))
        uses.update(wanted)
        outer = set(values)
        for node in graph.nodes:
            for name, value in zip(node.outputs, self._computed(node, graph, values), strict=False):
                if uses[name]:
                    values[name] = value
            for name in _reads(node):
                uses[name] -= 1
                if not uses[name] and name not in outer:
                    values.pop(name, None)
            held = sum(value.nbytes for value in values.values())
            if held > MOST_HELD:
                raise MalformedFile(f"{node}: values of {held:,} bytes at a time; the limit is {MOST_HELD:,}")
        return {name: self._value(name, graph, values) for name in wanted}

    def _computed(self, node: Node, graph: Graph, values: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        with about(str(node)):
            try:
                if node.op_type == "If":
                    return self._branched(node, graph, values)
                if node.op_type == "Loop":
                    return self._looped(node, graph, values)
                inputs = [self._value(name, graph, values) if name else None for name in node.inputs]
                call = Call(self._with_constants(node), inputs, self._model.opsets.get(node.domain, 1))
                with np.errstate(all="ignore"):
                    made = OPERATORS[node.domain, node.op_type](call)
            except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
                raise MalformedFile(str(error) or type(error).__name__) from error
            call.refuse_others()
            if len(made) < len(node.outputs):
                raise MalformedFile(f"it has {len(node.outputs)} outputs, and makes {len(made)}")
            return made

    def _branched(self, node: Node, graph: Graph, values: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        condition = self._value(node.inputs[0], graph, values)
        if condition.dtype != np.bool_ or condition.size != 1 or set(node.attributes) != BRANCHES:
            raise MalformedFile("it has no condition, or not two branches")
        branch = node.attributes["then_branch" if condition.item() else "else_branch"]
        if not isinstance(branch, Graph) or branch.inputs:
            raise MalformedFile("a branch is no graph, or has inputs")
        found = self._run(branch, self._around(branch, graph, values), branch.outputs)
        return [found[name] for name in branch.outputs]

    def _looped(self, node: Node, graph: Graph, values: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        """A body that is told how often it ran, whether it goes on, and what it carries; other outputs are stacked."""
        body, carried = node.attributes.get("body"), len(node.inputs) - 2
        count, going = (self._value(name, graph, values) if name else None for name in node.inputs[:2])
        start = [self._value(name, graph, values) for name in node.inputs[2:]]
        if not isinstance(body, Graph) or set(node.attributes) != {"body"} or len(body.inputs) != 2 + carried:
            raise MalformedFile("its body is no graph of such a loop")
        times = MOST_TIMES + 1 if count is None else int(count.item())
        going = np.array(True) if going is None else going
        around = self._around(body, graph, values)
        rounds: list[list[np.ndarray]] = []
        held = 0
        while going.item() and len(rounds) < times:
            if len(rounds) == MOST_TIMES:
                raise MalformedFile(f"it goes round more often than {MOST_TIMES:,} times")
            given = dict(zip(body.inputs, (np.array(len(rounds)), going, *start), strict=True))
            found = self._run(body, {**around, **given}, body.outputs)
            going, *made = (found[name] for name in body.outputs)
            start = made[:carried]
            rounds.append(made[carried:])
            held += sum(value.nbytes for value in rounds[-1])
            if held > MOST_HELD:
                raise MalformedFile(f"it stacks more than {MOST_HELD:,} bytes")
        if not rounds:
            raise UnsupportedModel("a loop that does not go round is not evaluated")
        return [*start, *(np.stack(stacked) for stacked in zip(*rounds, strict=True))]

    def _around(self, inner: Graph, graph: Graph, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a graph within another one reads of it."""
        return {name: self._value(name, graph, values) for name in _free(inner)}

    def _value(self, name: str, graph: Graph, values: Mapping[str, np.ndarray]) -> np.ndarray:
        if name in values:
            return values[name]
        return self._read(graph.initializers[name])

    def _read(self, tensor: StoredTensor) -> np.ndarray:
        key = id(tensor)  # the model holds it as long as this lives
        if key not in self._kept:
            values = self._stored.read(tensor)
            if values.nbytes > self._room:
                return values
            self._room -= values.nbytes
            self._kept[key] = values
        return self._kept[key]

    def _with_constants(self, node: Node) -> Node:
        """`node` with the values of attributes that are tensors."""
        read = {
            name: self._read(value) if isinstance(value, StoredTensor) else value
            for name, value in node.attributes.items()
        }
        return Node(node.name, node.domain, node.op_type, node.inputs, node.outputs, read)


def _branches(node: Node) -> Iterable[Graph]:
    return (value for value in node.attributes.values() if isinstance(value, Graph))


def _reads(node: Node) -> set[str]:
    """Names that a node needs, those that its branches take from around them with them."""
    return {name for name in node.inputs if name}.union(*map(_free, _branches(node)))


def _free(graph: Graph) -> set[str]:
    """Names that a graph within another one reads and does not make, nor is given."""
    made = {name for node in graph.nodes for name in node.outputs} | set(graph.initializers) | set(graph.inputs)
    return (set(graph.outputs).union(*map(_reads, graph.nodes)) if graph.nodes else set(graph.outputs)) - made

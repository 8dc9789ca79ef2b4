"""The model as an ONNX graph, whatever operators it is written in.

    inputs     input_ids int64 [batch, sequence], attention_mask int64 [batch, total], 1 = a token, 0 = padding
               past_key_values.I.key, .value [batch, key-value heads, past, head_dim]
    outputs    logits float32 [batch, sequence, vocabulary]
               present.I.key, .value [batch, key-value heads, total, head_dim], keys turned

total = past + sequence. Where attention is sparse, batch is 1, and `quantkit.exporters.onnx.sparse.memory` says what
stands in place of the mask, and what is remembered. Values in between have names: "embedding", times `scale_emb`;
"block I", after both of its sums; "final norm", before it is divided. All are of the type that the graph computes in; a
norm is computed in float32. The names are those of onnxruntime-genai's model builder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantkit.exporters.onnx.elements import ARRAYS, FLOAT, INT64
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.graph.contrib import ContribOperators
from quantkit.exporters.onnx.graph.remembered import PAST, PRESENT, Remembered
from quantkit.exporters.onnx.graph.standard import StandardOperators
from quantkit.exporters.onnx.places import Places
from quantkit.exporters.onnx.settings import Settings
from quantkit.exporters.onnx.sparse.memory import sparse_memory
from quantkit.exporters.onnx.sparse.operators import SparseOperators
from quantkit.models.spec import EMBEDDING, FINAL_NORM, HEAD, ModelSpec, Role

if TYPE_CHECKING:
    import onnx

IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"


class Operators(Protocol):
    """A set of operators, and how it says what a decoder is made of. One for each graph."""

    @property
    def opset(self) -> int:
        """The version of ONNX's operators that it needs."""
        ...

    def lookup(self, ids: str) -> str:
        """The rows of the embedding, [batch, sequence, hidden]."""
        ...

    def linear(self, x: str, name: str) -> str:
        """x times the transposed matrix `name`."""
        ...

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        """Attention of [batch, sequence, heads * head_dim], with the layer's past; gives its present as well."""
        ...


def decoder(spec: ModelSpec, plan: Places, settings: Settings, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The graph of a model of `spec`, whose weights lie where `plan` says."""
    graph = Graph(settings.element)
    remembered = sparse_memory(spec) if settings.sparse else _dense_memory(spec)
    graph.input(IDS, INT64, (remembered.batch, SEQUENCE))
    for name, shape in remembered.lengths.items():
        graph.input(name, INT64, shape)
    layers = range(spec.num_hidden_layers)
    for layer in layers:
        for part, shape in remembered.past.items():
            graph.input(PAST % (layer, part), settings.element, shape)
    operators = _operators(graph, spec, plan, settings)
    body = _Body(graph, spec, plan, settings, operators)
    x = body.stage("embedding", "Mul", operators.lookup(IDS), body.scalar(spec.scale_emb))
    for layer in layers:
        x = body.block(x, layer)
    body.head(x)
    for layer in layers:
        for part, shape in remembered.present.items():
            graph.output(PRESENT % (layer, part), settings.element, shape)
    return graph.model(operators.opset, metadata)


def _operators(graph: Graph, spec: ModelSpec, plan: Places, settings: Settings) -> Operators:
    if settings.sparse:
        return SparseOperators(graph, spec, plan, settings)
    kind = ContribOperators if settings.contrib else StandardOperators
    return kind(graph, spec, plan, settings)


def _dense_memory(spec: ModelSpec) -> Remembered:
    past, present = (
        dict.fromkeys(("key", "value"), (BATCH, spec.num_key_value_heads, length, spec.head_dim))
        for length in ("past_sequence_length", TOTAL)
    )
    return Remembered(BATCH, {MASK: (BATCH, TOTAL)}, past, present)


class _Body:
    """Blocks and head."""

    def __init__(self, graph: Graph, spec: ModelSpec, plan: Places, settings: Settings, operators: Operators) -> None:
        self._graph, self._spec, self._plan, self._operators = graph, spec, plan, operators
        self._element = settings.element

    def scalar(self, value: float) -> str:
        """A constant of the type that is computed in."""
        return self._graph.number(value, ARRAYS[self._element])

    def stage(self, name: str, kind: str, *inputs: str) -> str:
        """An operator whose output has a name that a tool may ask for."""
        self._graph.stage(name, self._element, (BATCH, SEQUENCE, self._spec.hidden_size))
        return self._graph.node(kind, inputs, name)

    def block(self, x: str, layer: int) -> str:
        """x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))."""
        operators = self._operators
        names = {role: self._spec.weight_name(layer, role) for role in self._spec.layer_names}
        h = self._norm(x, names[Role.ATTN_NORM])
        q, k, v = (operators.linear(h, names[role]) for role in (Role.Q, Role.K, Role.V))
        mixed = operators.linear(operators.attention(q, k, v, layer), names[Role.O])
        x = self._graph.node("Add", (x, self._residual(mixed)))
        h = self._norm(x, names[Role.MLP_NORM])
        gate, up = (operators.linear(h, names[role]) for role in (Role.GATE, Role.UP))
        silu = self._graph.node("Mul", (gate, self._graph.node("Sigmoid", (gate,))))
        down = operators.linear(self._graph.node("Mul", (silu, up)), names[Role.DOWN])
        return self.stage(f"block {layer}", "Add", x, self._residual(down))

    def head(self, x: str) -> None:
        """logits = rms_norm(x) / logit_divisor, times the head; float32."""
        graph, spec = self._graph, self._spec
        graph.stage("final norm", self._element, (BATCH, SEQUENCE, spec.hidden_size))
        x = self._norm(x, FINAL_NORM, "final norm")
        if spec.logit_divisor != 1:
            x = graph.node("Div", (x, self.scalar(spec.logit_divisor)))
        name = HEAD if HEAD in self._plan.weights else EMBEDDING
        graph.node("Cast", (self._operators.linear(x, name),), LOGITS, to=FLOAT.code)
        graph.output(LOGITS, FLOAT, (BATCH, SEQUENCE, spec.vocab_size))

    def _residual(self, x: str) -> str:
        scale = self._spec.residual_scale
        return x if scale == 1 else self._graph.node("Mul", (x, self.scalar(scale)))

    def _norm(self, x: str, name: str, output: str | None = None) -> str:
        """x / sqrt(mean(x ** 2) + eps) * weight, in float32, which onnxruntime makes one operator of."""
        graph, wide = self._graph, self._element == FLOAT
        weight = graph.external(name, self._plan.weights[name].extents[""])
        x = graph.float32(x)
        square = graph.node("Pow", (x, graph.number(2.0, np.dtype(np.float32))))
        mean = graph.node("ReduceMean", (square, graph.integers(-1)), keepdims=1)
        shifted = graph.node("Add", (mean, graph.number(self._spec.rms_norm_eps, np.dtype(np.float32))))
        normed = graph.node("Div", (x, graph.node("Sqrt", (shifted,))))
        scaled = graph.node("Mul", (normed, weight), output if wide else None)
        return scaled if wide else graph.node("Cast", (scaled,), output, to=self._element.code)

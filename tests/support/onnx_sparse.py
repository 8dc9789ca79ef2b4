"""Sparse attention of one layer as a graph by itself, in onnxruntime, and what it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime

from quantkit.exporters.onnx.elements import FLOAT, INT64
from quantkit.exporters.onnx.graph.builder import Graph
from quantkit.exporters.onnx.graph.remembered import PAST, PRESENT
from quantkit.exporters.onnx.sparse.attention import SparseAttention
from quantkit.exporters.onnx.sparse.memory import PAST_LENGTH, PROMPT_LENGTH, ROWS, Memory
from quantkit.exporters.onnx.sparse.selection import Selection
from quantkit.models.spec import COARSE, SparseSpec
from tests.support.onnx_engine import LEVELS

OPSET = 21


def attention_graph(sparse: SparseSpec, heads: int, groups: int, head_dim: int) -> onnx.ModelProto:
    """Takes q [T, G, R, D], k and v [T, G, D] and the buffers; gives `mixed` [T, H * D] and the buffers."""
    graph = Graph(FLOAT)
    ratio = heads // groups
    graph.input("q", FLOAT, ("T", groups, ratio, head_dim))
    for name in ("k", "v"):
        graph.input(name, FLOAT, ("T", groups, head_dim))
    for name in (PAST_LENGTH, PROMPT_LENGTH):
        graph.input(name, INT64, (1,))
    for part, rows in ROWS.items():
        graph.input(PAST % (0, part), FLOAT, (groups, rows, head_dim))
    memory = Memory(graph, sparse, groups, graph.node("Shape", ("q",), start=0, end=1))
    attention = SparseAttention(graph, sparse, memory, heads=heads, groups=groups, head_dim=head_dim)
    kept = memory.extended(0, "k", "v", None)
    q = graph.node("Mul", ("q", graph.number(head_dim**-0.5, np.dtype(np.float32))))
    graph.node("Identity", (attention.mixed(q, q, kept),), "mixed")
    graph.output("mixed", FLOAT, ("T", heads * head_dim))
    for part, rows in ROWS.items():
        graph.output(PRESENT % (0, part), FLOAT, (groups, rows, head_dim))
    return graph.model(OPSET, {})


def selection_graph(sparse: SparseSpec, heads: int, groups: int, head_dim: int) -> onnx.ModelProto:
    """Takes q [t, G, R, D], positions [t] and means [G, n, D]; gives the numbers of the chosen blocks, [t, G, k]."""
    graph = Graph(FLOAT)
    graph.input("q", FLOAT, ("t", groups, heads // groups, head_dim))
    graph.input("positions", INT64, ("t",))
    for name in (PAST_LENGTH, PROMPT_LENGTH):
        graph.input(name, INT64, (1,))
    for part in ("fine", "coarse"):
        graph.input(part, FLOAT, (groups, ROWS[part], head_dim))
    memory = Memory(graph, sparse, groups, graph.node("Shape", ("q",), start=0, end=1))
    q = graph.node("Mul", ("q", graph.number(head_dim**-0.5, np.dtype(np.float32))))
    chosen = Selection(graph, sparse, memory).chosen(q, "positions", "fine", "coarse")
    graph.node("Identity", (chosen,), "chosen")
    graph.output("chosen", INT64, ("t", groups, "k"))
    return graph.model(OPSET, {})


def engine(model: onnx.ModelProto, level: str = "all") -> Any:
    """The graph in onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Layer:
    """One layer in onnxruntime, which remembers in buffers for `room` tokens, written to in place."""

    def __init__(self, session: Any, sparse: SparseSpec, groups: int, head_dim: int, room: int) -> None:
        self._session, self.length = session, 0
        room += -room % sparse.block_size
        rows = (room, room, room // sparse.kernel_stride, -(-room // (COARSE * sparse.kernel_stride)))
        self.buffers: Mapping[str, np.ndarray] = {
            part: np.zeros((groups, count, head_dim), np.float32) for part, count in zip(ROWS, rows, strict=True)
        }

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, prompt: int | None) -> np.ndarray:
        """[T, H * D] of q [H, T, D], k and v [G, T, D]; prompt: as for the reference."""
        (heads, new, head_dim), groups = q.shape, len(k)
        binding = self._session.io_binding()
        by_token = {name: np.ascontiguousarray(x.swapaxes(0, 1)) for name, x in (("q", q), ("k", k), ("v", v))}
        by_token["q"] = by_token["q"].reshape(new, groups, heads // groups, head_dim)
        lengths = {PAST_LENGTH: np.array([self.length]), PROMPT_LENGTH: np.array([prompt or 0])}
        for name, array in {**by_token, **lengths}.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("mixed")
        for part, buffer in self.buffers.items():
            shared = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(PAST % (0, part), shared)
            binding.bind_ortvalue_output(PRESENT % (0, part), shared)
        self._session.run_with_iobinding(binding)
        self.length += new
        mixed: np.ndarray = binding.get_outputs()[0].numpy()
        return mixed

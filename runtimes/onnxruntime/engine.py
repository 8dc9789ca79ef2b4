"""The child process of `session.py`: holds a model in onnxruntime and answers questions (`_engine_child.py`).

{"do": "load", "folder": F, "threads": N, "exact": B, "blocks": N, "groups": N, "width": N,
 "block_size": N, "stride": N}                                     {}
{"do": "logits", "token_ids": [...], "step": N}                    {} + float32 rows [T, V]
{"do": "next", "token_ids": [...], "step": N, "anew": B}           {} + float32 row [1, V]
{"do": "trace", "token_ids": [...]}                                {"stages": [name, ...]} + float32 [T, ?] each
anything that the engine refuses                                   {"error": "one line"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from quantkit.runtimes._cached_decoder import CachedDecoder, stage_names
from quantkit.runtimes._engine_child import rows_reply, serve_engine, stages_reply
from quantkit.runtimes._sparse_decoder import Buffers, Run, Sizes, SparseDecoder

GRAPH_NAME = "model.onnx"
DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
EXACT, FAST = 0, 4
"""Accuracy levels of MatMulNBits: inputs as they are, or rounded to int8 for every block."""
LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""The same for those that are made of DequantizeLinear and MatMul."""
FOLDER = "session.model_external_initializers_file_folder_path"
"""Where external data lies of a graph that is given as bytes."""
ERRORS_ONLY = 3


class Engine:
    """A loaded model; of a trace, a second session, whose graph has the stages among its outputs.

    block_size, stride: see `Sizes`, of a graph that attends sparsely; 0 of any other.
    """

    def __init__(
        self,
        *,
        folder: str,
        threads: int,
        exact: bool,
        blocks: int,
        groups: int,
        width: int,
        block_size: int,
        stride: int,
    ) -> None:
        self._folder, self._threads = folder, threads
        self._level = EXACT if exact else FAST
        self._sizes = Sizes(blocks, groups, width, block_size, stride)
        self._stages = stage_names(blocks)
        self._decoder = self._opened([])
        self._tracing: CachedDecoder | SparseDecoder | None = None

    def logits(self, token_ids: list[int], step: int) -> np.ndarray:
        """Rows [T, V]."""
        return self._decoder.logits(token_ids, step)

    def next(self, token_ids: list[int], step: int, anew: bool) -> np.ndarray:
        """The row [1, V] of the last token; anew: what is remembered of others does not count."""
        if anew:
            self._decoder.forget()
        return self._decoder.next(token_ids, step)

    def trace(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Name to values [T, ?]."""
        if self._tracing is None:
            self._tracing = self._opened(self._stages)
        return self._tracing.trace(token_ids, self._stages)

    def _opened(self, stages: Sequence[str]) -> CachedDecoder | SparseDecoder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry(LEVEL, str(self._level))
        options.add_session_config_entry(FOLDER, self._folder)
        session = onnxruntime.InferenceSession(self._graph(stages), options, providers=["CPUExecutionProvider"])
        kinds = {given.name: given.type for given in session.get_inputs()}
        odd = [name for name, kind in kinds.items() if kind not in DTYPES]
        if odd:
            raise RuntimeError(f"the graph's input {odd[0]!r} is a {kinds[odd[0]]}")
        inputs, sizes = {name: np.dtype(DTYPES[kind]) for name, kind in kinds.items()}, self._sizes
        if sizes.block_size:
            return SparseDecoder(in_place(session), inputs, sizes)

        def run(feeds: Mapping[str, np.ndarray], wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
            return dict(zip(wanted, session.run(list(wanted), dict(feeds)), strict=True))

        return CachedDecoder(run, inputs, blocks=sizes.blocks, groups=sizes.groups, width=sizes.width)

    def _graph(self, stages: Sequence[str]) -> bytes:
        """The graph at the accuracy level that was asked for, with `stages` among its outputs."""
        model = onnx.load(Path(self._folder) / GRAPH_NAME, load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = self._level
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in stages)
        data: bytes = model.SerializeToString()
        return data


def in_place(session: onnxruntime.InferenceSession) -> Run:
    """Runs a graph that writes into the buffers that it reads: without copies, which would take most of the time."""

    def run(feeds: Mapping[str, np.ndarray], buffers: Buffers, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in wanted:
            binding.bind_output(name)
        for name, array in buffers.items():
            shared = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, shared)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), shared)
        session.run_with_iobinding(binding)
        found = binding.get_outputs()[: len(wanted)]
        return {name: value.numpy() for name, value in zip(wanted, found, strict=True)}

    return run


def main() -> None:
    """Answer requests until stdin ends."""
    serve_engine(Engine, {"logits": rows_reply, "next": rows_reply, "trace": stages_reply})

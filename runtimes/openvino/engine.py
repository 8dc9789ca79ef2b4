"""The child process of `session.py`: holds a model in OpenVINO and answers questions (`_engine_child.py`).

{"do": "load", "path": P, "size": V}                          {}
{"do": "logits", "token_ids": [...], "step": N}               {} + float32 rows [T, V]
{"do": "next", "token_ids": [...], "step": N, "anew": B}      {} + float32 row [V]
{"do": "trace", "token_ids": [...]}                           {"stages": [name, ...]} + float32 [T, ?] each
{"do": "tokenize", "graph": P, "text": T}                     {"token_ids": [...]}
anything that the engine refuses                              {"error": "one line"}

A step is how many tokens are computed at a time; anew: nothing that was computed before is used.
`EXECUTION_MODE_HINT=ACCURACY` is all that OpenVINO needs to compute in float32: by default it computes in bfloat16
where the processor has it, rounds the inputs of compressed layers to int8, and keeps keys and values in 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.runtimes._engine_child import NOTHING, ids_reply, rows_reply, serve_engine, stages_reply
from quantkit.runtimes._openvino_inputs import LOGITS, TOKENS, step_inputs

DEVICE = "CPU"
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
EMBEDDING, BLOCK, NORM = ("embedding/scaled", "embedding"), "block.{}/mlp_sum", "final_norm"
"""Names of the nodes whose outputs are the stages of a trace; of several the first that there is."""


class Engine:
    """One compiled model and its state. size: of the vocabulary."""

    def __init__(self, *, path: str, size: int) -> None:
        import openvino  # noqa: PLC0415 - wanted only here

        self._core = openvino.Core()
        self._path = path
        self._size = size
        self._request = self._core.compile_model(path, DEVICE, EXACT).create_infer_request()
        self._held: list[int] = []
        self._tokenizer: Any = None

    def logits(self, token_ids: list[int], step: int) -> np.ndarray:
        """Rows [T, V] of a sequence."""
        self._forget()
        rows = np.empty((len(token_ids), self._size), np.float32)
        for start in range(0, len(token_ids), step):
            part = token_ids[start : start + step]
            rows[start : start + len(part)] = self._extended(part)
        return rows

    def next(self, token_ids: list[int], step: int, anew: bool) -> np.ndarray:
        """The last row [V]; what the state holds is not computed again where the ids go on from it."""
        known = len(self._held)
        if anew or token_ids[:known] != self._held or known >= len(token_ids):
            self._forget()
        row = NOTHING
        while len(self._held) < len(token_ids):
            row = self._extended(token_ids[len(self._held) : len(self._held) + step])[-1]
        return row

    def trace(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Every stage as `Session.trace` names them, from a model of its own that shows them."""
        model = self._core.read_model(self._path)
        nodes = {node.get_friendly_name(): node for node in model.get_ops()}
        stages = {next(name for name in EMBEDDING if name in nodes): "embedding"}
        for layer in range(sum(BLOCK.format(number) in nodes for number in range(len(nodes)))):
            stages[BLOCK.format(layer)] = f"block {layer}"
        stages[NORM] = "final norm"
        model.add_outputs([nodes[name].output(0) for name in stages])
        request = self._core.compile_model(model, DEVICE, EXACT).create_infer_request()
        request.infer(step_inputs(token_ids, 0))
        places = {output.node.input_value(0).node.get_friendly_name(): i for i, output in enumerate(model.outputs)}
        found = {stage: request.get_output_tensor(places[name]).data[0].copy() for name, stage in stages.items()}
        return {**found, "logits": request.get_tensor(LOGITS).data[0].copy()}

    def tokenize(self, graph: str, text: str) -> list[int]:
        """What the tokenizer's graph makes of a text, special tokens first."""
        if self._tokenizer is None:
            import openvino  # noqa: PLC0415 - wanted only here
            import openvino_tokenizers  # noqa: F401, PLC0415 - whose operators cores know from then on

            self._tokenizer = openvino.Core().compile_model(graph, DEVICE)
        return [int(token) for token in self._tokenizer([text])[TOKENS][0]]

    def _forget(self) -> None:
        self._request.reset_state()
        self._held = []

    def _extended(self, part: list[int]) -> np.ndarray:
        """The rows [T, V] of what follows the state. A view: valid until the next call."""
        self._request.infer(step_inputs(part, len(self._held)))
        rows: np.ndarray = self._request.get_tensor(LOGITS).data
        if rows.shape != (1, len(part), self._size):  # with one thread a failure is an empty tensor, not an exception
            raise RuntimeError(f"the logits are {list(rows.shape)} instead of {[1, len(part), self._size]}")
        self._held = [*self._held, *part]
        last: np.ndarray = rows[0]
        return last


def main() -> None:
    """Answer requests until stdin ends."""
    serve_engine(Engine, {"logits": rows_reply, "next": rows_reply, "trace": stages_reply, "tokenize": ids_reply})

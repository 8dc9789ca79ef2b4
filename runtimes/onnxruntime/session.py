"""An ONNX folder in onnxruntime: all rows of a prompt in one run, tokens that follow on the cache, and every stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quantkit.models.spec import ModelSpec
from quantkit.runtimes._engine_process import stages_in
from quantkit.runtimes._onnx_allowances import evaluating, size_of
from quantkit.runtimes._onnx_session import OnnxEngineSession

SERVE = "from quantkit.runtimes.onnxruntime.engine import main; main()"
"""What the child runs."""
SMALL_MODEL = 64 << 20
"""Bytes below which one thread is fastest: on smaller models threads mostly wait for each other."""


class OnnxruntimeSession(OnnxEngineSession):
    """The decoder in `folder`; see `OnnxEngineSession`.

    exact: whether inputs of quantized matrices stay what they are; False = as fast as the engine can, with int8 inputs.
    sparsely: whether the graph attends so, as `spec.sparse` says. Then `logits` reads ids as one prompt, `next_logits`
    decodes what comes behind the ids of the last call, and the two may differ: a prompt's first tokens are sparse as
    soon as the prompt is long, decoded ones once the context is.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, exact: bool = True, sparsely: bool = False) -> None:
        sparse = spec.sparse if sparsely else None
        super().__init__(
            folder,
            spec,
            engine="onnxruntime",
            serve=SERVE,
            threads=1 if size_of(folder) < SMALL_MODEL else os.cpu_count() or 1,
            exact=exact,
            blocks=spec.num_hidden_layers,
            groups=spec.num_key_value_heads,
            width=spec.head_dim,
            block_size=0 if sparse is None else sparse.block_size,
            stride=0 if sparse is None else sparse.kernel_stride,
        )

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32.

        NaN passes: it shows where it began.
        """
        ids = self._checked(token_ids)
        allowance = evaluating(self._path, self._spec, len(ids), len(ids))
        answer, data = self._child.ask(allowance, do="trace", token_ids=ids)
        return stages_in(answer["stages"], np.frombuffer(data, np.float32), len(ids), self._spec)

"""A folder with `model.onnx` in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit.errors import EngineFailed, about
from quantkit.files.member import open_member
from quantkit.models.context import checked_ids
from quantkit.models.spec import ModelSpec, SparseSpec
from quantkit.runtimes._cached_decoder import CachedDecoder, stage_names, step_of
from quantkit.runtimes._sparse_decoder import Buffers, Sizes, SparseDecoder
from quantkit.runtimes.onnx_numpy.evaluator import Evaluator
from quantkit.runtimes.onnx_numpy.graph import parse_model

if TYPE_CHECKING:
    from typing_extensions import Self

GRAPH_NAME = "model.onnx"
MOST_GRAPH_BYTES = (1 << 31) - 1
"""Of a protobuf, by its own limit."""
STEP = 512
"""Tokens that are computed at a time."""


class OnnxNumpySession:
    """The decoder in `folder`, whose numbers are `spec`'s. sparsely: as for `OnnxruntimeSession`.

    Raises:
        MalformedFile, IncompleteFile, UnsafePath: the graph, or what it says of the file beside it.
        UnsupportedModel: an operator that is not evaluated.
        EngineFailed: it is no decoder as `_cached_decoder` knows them.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, sparsely: bool = False) -> None:
        self._path = folder / GRAPH_NAME
        self._spec = spec
        with about(str(self._path)):
            data = open_member(folder, GRAPH_NAME).read_all(MOST_GRAPH_BYTES)
            evaluator = Evaluator(parse_model(memoryview(data)), folder)
            self._decoder = _decoder(evaluator, spec, spec.sparse if sparsely else None)
        self._known = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.forget()

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        ids = checked_ids(self._spec, token_ids)
        with about(str(self._path)):
            return self._vocabulary(self._decoder.logits(ids, step_of(self._spec, len(ids), STEP)))

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; keys and values of tokens that the call before had are not computed again."""
        ids = checked_ids(self._spec, token_ids)
        if not self._spec.rope.turns_alike(self._known, len(ids)):
            self._decoder.forget()
        with about(str(self._path)):
            row: np.ndarray = self._vocabulary(self._decoder.next(ids, step_of(self._spec, len(ids), STEP)))[0]
        self._known = len(ids)
        return row

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage in order: "embedding", "block 0", ..., "final norm" [T, hidden], "logits" [T, vocab]; float32.

        Raises:
            EngineFailed: the graph has no value of such a name.
        """
        ids, stages = checked_ids(self._spec, token_ids), stage_names(self._spec.num_hidden_layers)
        with about(str(self._path)):
            return self._decoder.trace(ids, stages)

    def _vocabulary(self, rows: np.ndarray) -> np.ndarray:
        if rows.shape[1] != self._spec.vocab_size:
            raise EngineFailed(f"the graph predicts {rows.shape[1]} tokens, the model has {self._spec.vocab_size}")
        return rows


def _decoder(evaluator: Evaluator, spec: ModelSpec, sparse: SparseSpec | None) -> CachedDecoder | SparseDecoder:
    blocks, groups, width = spec.num_hidden_layers, spec.num_key_value_heads, spec.head_dim
    if sparse is None:
        return CachedDecoder(evaluator.run, evaluator.inputs, blocks=blocks, groups=groups, width=width)

    def run(feeds: Mapping[str, np.ndarray], buffers: Buffers, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        made = {name: name.replace("past_key_values", "present") for name in buffers}
        found = evaluator.run({**feeds, **buffers}, [*wanted, *made.values()])
        buffers.update((name, found[present]) for name, present in made.items())
        return found

    sizes = Sizes(blocks, groups, width, sparse.block_size, sparse.kernel_stride)
    return SparseDecoder(run, evaluator.inputs, sizes)

"""A whole small model, dense and sparse, in each runtime: its step takes all ids so far, and reads what is new.

Another runtime is another entry of `MODELS`. In ONNX Runtime both sides write into the buffers that they read: dense is
the graph of `export onnx` with its GroupQueryAttention on shared buffers, sparse that of `--attention sparse`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import quantkit
from quantkit.models.checkpoint import Checkpoint
from quantkit.runtimes.reference.sparse.session import SparseSession
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

VOCABULARY, CONTEXT = 1024, 1 << 18
LAYERS, HEAD_DIM = 4, 64
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT,
    "rope_scaling": None,
}  # fmt: skip
PIECE = 1024
"""Tokens of a prompt that ONNX Runtime reads at a time."""
Step = Callable[[Sequence[int]], np.ndarray]


def checkpoint(dense_len: int) -> Checkpoint:
    """16 heads of 64 in 4 layers, dense below `dense_len`."""
    config = tiny_config(**SHAPE, sparse_config={"dense_len": dense_len})
    return memory_checkpoint(config, random_arrays(memory_checkpoint(config).spec, seed=0))


def numpy_model(dense_len: int) -> Step:
    """The reference."""
    return SparseSession(checkpoint(dense_len)).next_logits


def onnx_sparse() -> Step:
    """The graph that attends sparsely at every length, fed as its runtime does."""
    from quantkit.runtimes.onnxruntime.engine import Engine  # noqa: PLC0415 - an extra

    model = checkpoint(0)
    sparse = model.spec.sparse
    assert sparse is not None
    with tempfile.TemporaryDirectory() as folder:
        graph = _exported(model, Path(folder), "sparse")
        engine = Engine(
            folder=str(graph), threads=1, exact=True, blocks=LAYERS, groups=1, width=HEAD_DIM,
            block_size=sparse.block_size, stride=sparse.kernel_stride,
        )  # fmt: skip
    return lambda ids: engine.next(list(ids), PIECE, anew=False)


def onnx_dense() -> Step:
    """The dense graph, whose operator takes keys and values of the past and of the present in one buffer."""
    import onnxruntime  # noqa: PLC0415 - an extra

    from quantkit.runtimes.onnxruntime.engine import in_place  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        graph = _exported(checkpoint(CONTEXT), Path(folder), "dense") / "model.onnx"
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    run = in_place(session)
    known, buffers = 0, dict[str, np.ndarray]()

    def step(ids: Sequence[int]) -> np.ndarray:
        nonlocal known, buffers
        if not buffers:
            room = np.zeros((1, 1, len(ids) + PIECE, HEAD_DIM), np.float32)
            names = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
            buffers = {name: room.copy() for name in names}
        logits = np.empty(0, np.float32)
        while known < len(ids):
            part = np.array([ids[known : known + PIECE]], np.int64)
            known += part.size
            feeds = {"input_ids": part, "attention_mask": np.ones((1, known), np.int64)}
            logits = run(feeds, buffers, ["logits"])["logits"][0, -1:]
        return logits

    return step


def _exported(model: Checkpoint, folder: Path, attention: str) -> Path:
    options = quantkit.ExportOptions(type="f32", attention=attention, context=CONTEXT)
    return quantkit.export("onnx", model, folder / attention, options).path


MODELS: Mapping[str, Mapping[str, Callable[[], Step]]] = {
    "numpy": {"dense": lambda: numpy_model(CONTEXT), "sparse": lambda: numpy_model(0)},
    "onnxruntime": {"dense": onnx_dense, "sparse": onnx_sparse},
}
"""By runtime."""

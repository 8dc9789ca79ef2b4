"""A whole small model, dense and sparse, in each runtime: its step takes all ids so far, and reads what is new.

Another runtime is another entry of `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantkit.runtimes.reference.sparse.session import SparseSession
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

VOCABULARY, CONTEXT = 1024, 1 << 18
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": CONTEXT,
    "rope_scaling": None,
}  # fmt: skip
Step = Callable[[Sequence[int]], np.ndarray]


def numpy_model(dense_len: int) -> Step:
    """The reference with 16 heads of 64 in 4 layers, dense below `dense_len`."""
    config = tiny_config(**SHAPE, sparse_config={"dense_len": dense_len})
    arrays = random_arrays(memory_checkpoint(config).spec, seed=0)
    return SparseSession(memory_checkpoint(config, arrays)).next_logits


MODELS: Mapping[str, Mapping[str, Callable[[], Step]]] = {
    "numpy": {"dense": lambda: numpy_model(CONTEXT), "sparse": lambda: numpy_model(0)}
}
"""By runtime."""

"""Models whose hidden channels differ in size by orders of magnitude, as those of trained models do."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.calibration.samples import Samples, make_samples
from quantkit.models.checkpoint import Checkpoint
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

NORMS = ("input_layernorm", "post_attention_layernorm")
ROWS = ("v_proj", "up_proj")


def outlier_arrays(config: dict[str, Any], *, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights; what feeds every linear layer has a few channels that are 5 to 50 times as large."""
    rng = np.random.default_rng(seed)
    arrays = random_arrays(memory_checkpoint(config).spec, seed=seed)
    for name, values in arrays.items():
        if any(part in name for part in (*NORMS, *ROWS)):
            large = rng.choice(len(values), len(values) // 12, replace=False)
            factors = np.ones(len(values), np.float32)
            factors[large] = np.exp(rng.uniform(np.log(5), np.log(50), len(large)))
            np.multiply(values, factors.reshape(-1, *[1] * (values.ndim - 1)), out=values)
    return {name: values.astype(dtype) for name, values in arrays.items()}


def outlier_model(*, dtype: Any = np.float32, seed: int = 0, **changes: Any) -> Checkpoint:
    """Such a model, of `tiny_config` with `changes`."""
    config = tiny_config(**{"num_hidden_layers": 2, **changes})
    return memory_checkpoint(config, outlier_arrays(config, dtype=dtype, seed=seed))


def token_samples(*lengths: int, vocab: int = 97, seed: int = 5) -> Samples:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return make_samples([rng.integers(0, vocab, length) for length in lengths], source="text", digest="0" * 64)


SEQUENCES = token_samples(*[40] * 16)
"""Calibration sequences for such a model."""

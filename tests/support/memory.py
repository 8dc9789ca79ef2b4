"""Models that live in memory: a `Checkpoint` without a folder, for tests of everything that only reads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import NORM_ROLES, ModelSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView, TensorView, Weight

TINY_CONFIG: Mapping[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "model_type": "minicpm",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 16,
}
"""A MiniCPM4 of about 100 000 weights with tied embeddings and plain RoPE, both unsaid as in the real 0.5B config."""


def tiny_config(**changes: Any) -> dict[str, Any]:
    """`TINY_CONFIG` with `changes`; a change to None removes the key."""
    merged = {**TINY_CONFIG, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def random_arrays(spec: ModelSpec, *, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights of every slot, scaled so that activations stay of order one and logits are spread."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for slot in spec.slots():
        if slot.role in NORM_ROLES:
            values = rng.uniform(0.5, 1.5, slot.shape)
        else:
            values = rng.standard_normal(slot.shape) / np.sqrt(slot.shape[-1])
        arrays[slot.name] = values.astype(dtype)
    return arrays


def memory_checkpoint(
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | QuantizedTensor] | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
    inputs: tuple[Path, ...] = (),
) -> Checkpoint:
    """The checkpoint of `config` whose weights are `arrays` (random float32 ones by default).

    Arrays become `TensorView`s of their own dtype, `QuantizedTensor`s become `QuantizedView`s. Every slot of the
    model must be there with its shape, as in a checkpoint that a reader has accepted.
    """
    spec = parse_config(config)
    given = random_arrays(spec) if arrays is None else arrays
    slots = {slot.name: slot.shape for slot in spec.slots()}
    assert slots == {name: tuple(values.shape) for name, values in given.items()}, "not the tensors of this config"
    return Checkpoint(
        path=Path("memory"),
        format="memory",
        config=dict(config),
        spec=spec,
        weights={name: _view(name, given[name]) for name in slots},
        files={name: _constant(data) for name, data in (files or {}).items()},
        inputs=inputs,
    )


def _view(name: str, values: np.ndarray | QuantizedTensor) -> Weight:
    if isinstance(values, QuantizedTensor):
        return QuantizedView(name, values.shape, values.scheme, lambda: values)
    return TensorView(name, values.dtype, values.shape, lambda start, stop: np.ascontiguousarray(values[start:stop]))


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data

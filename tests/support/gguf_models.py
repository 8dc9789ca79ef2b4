"""Models for GGUF files, in memory, and the files that are written of them, as gguf-py reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from quantkit import registry
from quantkit.artifacts.publishing import publish
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView
from tests.support.memory import memory_checkpoint, random_arrays, tiny_config

BF16 = np.dtype(ml_dtypes.bfloat16)
EXPORTER = registry.exporter("gguf")
FACTORS = [round(1 + i / 7, 4) for i in range(16)]
CONFIG = tiny_config(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    dim_model_base=32,
    max_position_embeddings=1024,
    eos_token_id=[2, 2040],
    rope_scaling={
        "rope_type": "longrope",
        "long_factor": FACTORS,
        "short_factor": FACTORS,
        "original_max_position_embeddings": 512,
    },
)
LLAMA = {**CONFIG, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": None}
WIDE = {**CONFIG, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "dim_model_base": 128}
WIDE |= {"rope_scaling": None}
"""Every row is whole blocks of 256, two of them or four."""
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
K_PROJ = "model.layers.1.self_attn.k_proj.weight"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"
DOWN_PROJ = "model.layers.0.mlp.down_proj.weight"


def dense(
    config: Mapping[str, Any] = CONFIG, *, dtype: Any = BF16, files: Mapping[str, bytes] | None = None
) -> Checkpoint:
    return memory_checkpoint(config, random_arrays(parse_config(config), dtype=dtype), files=files)


def random_quantized(shape: tuple[int, ...], spec: AffineGroups, seed: int = 0) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    rows, cols = shape
    groups = (rows, spec.groups(cols))
    zero = np.full(groups, spec.midpoint) if spec.symmetric else rng.integers(0, spec.levels, groups)
    return QuantizedTensor(
        spec,
        rng.integers(0, spec.levels, shape).astype(np.uint8),
        {
            "scale": (rng.uniform(0.5, 1.5, groups) * 0.05 / spec.midpoint).astype(SCALE_DTYPES[spec.scale_dtype]),
            "zero": zero.astype(np.uint8),
        },
    )


def quantized(
    spec: AffineGroups, config: Mapping[str, Any] = CONFIG, *, files: Mapping[str, bytes] | None = None
) -> Checkpoint:
    """Linear layers on the grid of `spec`, everything else dense."""
    model = parse_config(config)
    arrays: dict[str, np.ndarray | QuantizedTensor] = dict(random_arrays(model, dtype=BF16))
    for seed, slot in enumerate(model.slots()):
        if slot.role in LINEAR_ROLES:
            arrays[slot.name] = random_quantized(slot.shape, spec, seed)
    return memory_checkpoint(config, arrays, files=files)


def with_tensor(source: Checkpoint, name: str, tensor: QuantizedTensor) -> Checkpoint:
    """`source` with another weight in the place of `name`."""
    view = QuantizedView(name, tensor.shape, tensor.scheme, lambda: tensor)
    return replace(source, weights={**source.weights, name: view})


def write(checkpoint: Checkpoint, path: Path, kind: str | None = None, arch: str = "native") -> Path:
    publish(EXPORTER.prepare(checkpoint, ExportOptions(type=kind, arch=arch)), path)
    return path


def theirs(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and dequantized tensors as gguf-py reads them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors
    }


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`, spelled out by rows: pair i of a head is rows i and i + d/2."""
    size = len(weight) // heads
    order = [head * size + i + half * size // 2 for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]

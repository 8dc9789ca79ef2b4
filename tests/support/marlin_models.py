"""Models that Marlin takes, in memory, and the folders that are written of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.publishing import publish
from quantkit.exporters.marlin.exporter import EXPORTER
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import ExportOptions
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView
from tests.support.memory import tiny_config
from tests.support.quantized_models import linears, quantized_model

INT4 = AffineGroups(bits=4, group_size=128)
PER_ROW = AffineGroups(bits=4, group_size=-1)
FACTORS = [1.0 + i / 4 for i in range(32)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": FACTORS,
    "long_factor": FACTORS,
    "original_max_position_embeddings": 64,
}
MINICPM = tiny_config(
    vocab_size=97, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=4,
    rope_scaling=LONGROPE, sparse_config={"topk": 64, "block_size": 64}, mup_denominator=32,
)  # fmt: skip
LLAMA = {**MINICPM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
STRADDLING = tiny_config(
    hidden_size=256, intermediate_size=320, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=1,
    head_dim=32,
)  # fmt: skip
"""k and v have 32 rows each: both lie in one run of 64."""

QKV = "model.layers.0.self_attn.qkv_proj"
CPM_CU, IST = ExportOptions(), ExportOptions(target="ist")


@cache
def model(kind: str = "minicpm") -> Checkpoint:
    config = {"minicpm": MINICPM, "llama": LLAMA, "straddling": STRADDLING}[kind]
    return quantized_model(config, linears(PER_ROW if kind == "straddling" else INT4))


def written(checkpoint: Checkpoint, folder: Path, options: ExportOptions = CPM_CU) -> Path:
    out = folder / f"{options.target or 'cpm.cu'}-int4"
    publish(EXPORTER.prepare(checkpoint, options), out)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


def tensor_of(checkpoint: Checkpoint, name: str) -> QuantizedTensor:
    view = checkpoint.weights[name]
    assert isinstance(view, QuantizedView)
    return view.read()


def check_equal(back: Checkpoint, given: Checkpoint) -> None:
    """Every quantized weight has equal codes and float16 scales, every dense one equal values."""
    assert list(back.weights) == list(given.weights)
    for name, weight in given.weights.items():
        found = back.weights[name]
        if isinstance(weight, TensorView):
            assert isinstance(found, TensorView)
            assert np.array_equal(found.read().astype(np.float64), weight.read().astype(np.float64)), name
        else:
            tensor, other = weight.read(), tensor_of(back, name)
            assert np.array_equal(other.codes, tensor.codes), name
            assert other.scale.dtype == np.float16
            assert np.array_equal(other.scale.astype(np.float64), tensor.scale.astype(np.float64)), name
            assert (other.zero == 8).all()

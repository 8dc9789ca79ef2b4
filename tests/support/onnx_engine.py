"""onnxruntime on a folder of the exporter, as its own documentation has it used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.models.spec import ModelSpec

onnxruntime = pytest.importorskip("onnxruntime")

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXACT = "session.qdq_matmulnbits_accuracy_level"


def session(folder: Path, level: str = "all", *, name: str = "model.onnx", optimized: Path | None = None) -> Any:
    """The graph `name` at an optimization level; `optimized`: where to write what becomes of it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT, "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])


def no_past(spec: ModelSpec, batch: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Of a graph that has seen nothing."""
    empty = np.zeros((batch, spec.num_key_value_heads, 0, spec.head_dim), dtype)
    layers = range(spec.num_hidden_layers)
    return {f"past_key_values.{layer}.{part}": empty for layer in layers for part in ("key", "value")}


def feeds(
    spec: ModelSpec, ids: Sequence[Sequence[int]], mask: Any = None, past: Any = None, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Everything that the graph is given; a mask of ones by default."""
    rows = np.array(ids, np.int64)
    past = no_past(spec, len(rows), dtype) if past is None else past
    total = rows.shape[1] + next(iter(past.values())).shape[2]
    mask = np.ones((len(rows), total)) if mask is None else mask
    return {"input_ids": rows, "attention_mask": np.array(mask, np.int64), **past}


def run(engine: Any, given: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits, and the past of a next run."""
    names = [output.name for output in engine.get_outputs()]
    found = dict(zip(names, engine.run(None, given), strict=True))
    past = {name.replace("present", "past_key_values"): values for name, values in found.items() if name != "logits"}
    return found["logits"], past


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """In float64, along the last axis."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    result: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result

"""The golden model with one thing wrong, and artifacts whose files were changed afterwards and signed anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.manifest import manifest_path
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.tensors.views import TensorView

Change = Callable[[np.ndarray], np.ndarray]


def with_config(model: Checkpoint, **changes: Any) -> Checkpoint:
    """The model whose config says something else; None removes a key."""
    config = {key: value for key, value in {**model.config, **changes}.items() if value is not None}
    return replace(model, config=config, spec=parse_config(config))


def with_weights(model: Checkpoint, changes: Mapping[str, Change]) -> Checkpoint:
    """The model with some tensors changed, float32 in and out."""

    def changed(view: TensorView, change: Change) -> TensorView:
        values = change(view.read().astype(np.float32)).astype(view.dtype)
        return replace(view, fetch=lambda start, stop: values[start:stop])

    weights = {name: changed(view, changes[name]) if name in changes else view for name, view in model.weights.items()}
    return replace(model, weights=weights)


def swapped_heads(rows: int) -> Change:
    """Rows of the first two heads exchanged."""
    return lambda w: np.concatenate([w[rows : 2 * rows], w[:rows], w[2 * rows :]])


def signed(artifact: Path) -> Path:
    """The artifact with the digests of its files in the manifest made right again."""
    where = manifest_path(artifact)
    manifest = json.loads(where.read_text())
    for name, entry in manifest["files"].items():
        data = (artifact / name if artifact.is_dir() else artifact).read_bytes()
        entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    where.write_text(json.dumps(manifest))
    return artifact

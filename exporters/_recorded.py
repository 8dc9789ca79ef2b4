"""What an artifact's manifest records of the numbers in it, read back from the files that were just written.

    tensors.NAME.digest   of a quantized tensor: `QuantizedTensor.numbers_digest`, the same in every container
    tensors.NAME.values   of codes that were written as floats: `quantkit.tensors.digests.values_digest`
    tensors.NAME.error    ||W - Q||^2 / ||W||^2, from the dense weights that it was made of (smoothing undone)
    tensors.NAME.origin   `values_digest` of those dense weights
    tensors.NAME.run      digest of what the run made, where the source holds the same numbers
    norms, divided        what a run smoothed the model by, see `quantkit.pipeline.weight_errors`

Errors and smoothing are handed on from the manifest of a quantized source; the digests are of what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.artifacts.manifest import read_manifest
from quantkit.models.checkpoint import Checkpoint
from quantkit.tensors.digests import values_digest
from quantkit.tensors.views import QuantizedView, TensorView, Weight, values_view

FIELDS = {"written": "digest", "digests": "run", "errors": "error", "origins": "origin"}
"""What is handed on of `tensors`, and where it stands there."""
ELEMENTS = 1 << 18
"""Weights that are compared at a time: what is computed of them stays in a core's second-level cache."""


def measured(
    model: Checkpoint, read: Callable[[Path], Checkpoint], *, threads: int = 1
) -> Callable[[Path], Mapping[str, Any]]:
    """`PlannedArtifact.measure` for the artifact that `model` becomes.

    Args:
        model: what is written, in the architecture that it is written in.
        read: the exporter's own reader.
        threads: how many tensors are read at a time.
    """

    def measure(path: Path) -> Mapping[str, Any]:
        written = read(path)
        known = _handed_on(model)
        tensors: dict[str, Mapping[str, Any]] = {}
        names = list(written.weights)
        # No queue as in `ordered_map`: entries are small, and none is to wait for a large tensor before it.
        with ThreadPoolExecutor(threads) as pool:
            entries = list(pool.map(lambda name: _entry(written.weights[name], model.weights[name]), names))
        for name, entry in zip(names, entries, strict=True):
            source = model.weights[name]
            if entry and isinstance(source, QuantizedView) and name in known["errors"]:
                entry["error"] = known["errors"][name]
            if entry and isinstance(source, QuantizedView) and name in known["origins"]:
                entry["origin"] = known["origins"][name]
            if name in known["digests"] and known["written"].get(name) == entry.get("digest", ""):
                entry["run"] = known["digests"][name]
            if entry:
                tensors[name] = entry
        return {"tensors": tensors, "norms": known["norms"], "divided": known["divided"]}

    return measure


def _entry(view: Weight, source: Weight) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if isinstance(view, QuantizedView):
        tensor = view.read()
        entry["digest"] = tensor.numbers_digest()
        if isinstance(source, TensorView):
            entry["origin"], entry["error"] = _compared(source, values_view(view.name, tensor))
    elif isinstance(source, QuantizedView):
        entry["values"] = values_digest(view.chunks())
    return entry


def _compared(source: TensorView, written: TensorView) -> tuple[str, float]:
    """The digest of dense weights, and the error of what became of them, which may hold them exactly."""
    damage = power = 0.0

    def compared() -> Iterator[np.ndarray]:
        nonlocal damage, power
        for weight, values in zip(source.chunks(ELEMENTS), written.chunks(ELEMENTS), strict=True):
            wide = weight.astype(np.float32)
            power += float(np.square(wide, dtype=np.float64).sum())
            damage += float(np.square(np.subtract(wide, values), dtype=np.float64).sum())
            yield wide

    origin = values_digest(compared())
    return origin, damage / power if power else 0.0


def _handed_on(model: Checkpoint) -> dict[str, Any]:
    """What the manifest of a quantized source says: numbers, errors and origins by tensor; what smoothing did."""
    known: dict[str, Any] = {key: {} for key in ("written", "digests", "errors", "origins", "norms", "divided")}
    if not model.holds_codes:
        return known
    manifest = read_manifest(model.path) or {}
    report, weights = manifest.get("report"), manifest.get("weights")
    run = report.get("weights") if isinstance(report, Mapping) else None
    for part in (run, weights):
        if not isinstance(part, Mapping):
            continue
        for key in known:
            if isinstance(part.get(key), Mapping):
                known[key] |= part[key]
        entries = part.get("tensors")
        if isinstance(entries, Mapping):
            for key, field in FIELDS.items():
                known[key] |= {n: e[field] for n, e in entries.items() if isinstance(e, Mapping) and field in e}
    return known

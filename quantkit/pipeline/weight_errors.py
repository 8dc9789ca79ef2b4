"""How far quantized weights lie from those that they were made of: what a run records for `verify`.

The plain error ||W - Q||^2 / ||W||^2, without activations, in the original's coordinates: smoothing is undone first.
A method that makes up for lost outputs moves weights further than rounding does, so the figure says nothing about
quality; it says which weights these are.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import NORM_ROLES, Role, TensorSlot
from quantkit.solver.unsmoothing import Smoothing, norm_ratio
from quantkit.tensors.cast import FLOAT32
from quantkit.tensors.digests import values_digest
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import energy
from quantkit.tensors.views import CHUNK_ELEMENTS, QuantizedView, TensorView


class WeightErrors:
    """Collects the errors of the weights of `source`, which is dense, as they are quantized."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._slots = {slot.name: slot for slot in source.spec.slots()}
        self._scales: dict[str, np.ndarray] = {}
        self._norms: dict[str, str] = {}
        self._errors: dict[str, float] = {}
        self._origins: dict[str, str] = {}
        self._digests: dict[str, str] = {}

    def smoothed(self, layer: int, scales: Mapping[Role, np.ndarray], norms: Mapping[str, np.ndarray]) -> None:
        """Learn what block `layer` was smoothed by, before its tensors are measured."""
        for role, scale in scales.items():
            name = self._source.spec.weight_name(layer, role)
            if role not in NORM_ROLES:
                self._scales[name] = scale.astype(np.float32)
        for name, changed in norms.items():
            original = self._source.weights[name]
            assert not isinstance(original, QuantizedView)
            self._scales[name] = norm_ratio(original.read().astype(np.float32), changed.astype(np.float32))
            self._norms[name] = values_digest([changed])

    def smoothed_source(self) -> Checkpoint:
        """The source with its matrices smoothed as the run has done it; other weights are the source's own."""
        smoothing = Smoothing(self._source.spec, self._scales)

        def smoothed(view: TensorView, slot: TensorSlot) -> TensorView:
            def fetch(start: int, stop: int) -> np.ndarray:
                return smoothing.applied(slot, view.fetch(start, stop).astype(np.float32), start)

            return replace(view, dtype=FLOAT32, fetch=fetch)

        weights = dict(self._source.weights)
        for name, slot in self._slots.items() if self._scales else ():
            view = weights[name]
            if isinstance(view, TensorView) and slot.layer is not None and len(slot.shape) == 2:
                weights[name] = smoothed(view, slot)
        return replace(self._source, weights=weights)

    def measured(self, name: str, tensor: QuantizedTensor) -> QuantizedTensor:
        """`tensor` itself; its numbers, its error, and which weights it was made of, taken down."""
        self._digests[name] = tensor.numbers_digest()
        self._origins[name] = values_digest(self._compared(name, tensor))
        return tensor

    def _compared(self, name: str, tensor: QuantizedTensor) -> Iterator[np.ndarray]:
        """Take down the error of `tensor`; yields the dense weights on the way, float32, in runs of rows."""
        view, slot = self._source.weights[name], self._slots[name]
        assert not isinstance(view, QuantizedView)
        smoothing = Smoothing(self._source.spec, self._scales)
        step = max(1, CHUNK_ELEMENTS // tensor.shape[1])
        damage = power = 0.0
        for start in range(0, tensor.shape[0], step):
            weight = view.fetch(start, min(start + step, tensor.shape[0])).astype(np.float32)
            values = smoothing.undone(slot, tensor.part(slice(start, start + step)).dequantized(), start)
            damage += energy(weight - values)
            power += energy(weight)
            yield weight
        self._errors[name] = damage / power if power else 0.0

    def to_json(self) -> dict[str, Any]:
        """For the manifest: digests of the numbers of each tensor and of the dense weights that it was made of, its
        error, digests of the norms that changed, scales of matrices that were divided.

        Scales are float32, little-endian, in base64: `verify` undoes with them what smoothing did.
        """
        divided = {
            name: base64.b64encode(scale.astype("<f4").tobytes()).decode()
            for name, scale in self._scales.items()
            if name not in self._norms
        }
        return {
            "architecture": self._source.spec.architecture,
            "digests": dict(self._digests),
            "errors": dict(self._errors),
            "origins": dict(self._origins),
            "norms": dict(self._norms),
            "divided": divided,
        }

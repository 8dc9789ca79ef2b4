"""How far quantized weights lie from those that they were made of: what a run records for `verify`.

The plain error ||W - Q||^2 / ||W||^2, without activations, in the original's coordinates: smoothing is undone first.
A method that makes up for lost outputs moves weights further than rounding does, so the figure says nothing about
quality; it says which weights these are.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import NORM_ROLES, Role
from quantkit.solver.smoothing import weight_name
from quantkit.solver.unsmoothing import Smoothing, norm_ratio
from quantkit.tensors.digests import values_digest
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import CHUNK_ELEMENTS, QuantizedView


class WeightErrors:
    """Collects the errors of the weights of `source`, which is dense, as they are quantized."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self._slots = {slot.name: slot for slot in source.spec.slots()}
        self._scales: dict[str, np.ndarray] = {}
        self._norms: dict[str, str] = {}
        self._errors: dict[str, float] = {}

    def smoothed(self, layer: int, scales: Mapping[Role, np.ndarray], norms: Mapping[str, np.ndarray]) -> None:
        """Learn what block `layer` was smoothed by, before its tensors are measured."""
        for role, scale in scales.items():
            name = weight_name(layer, role)
            if role not in NORM_ROLES:
                self._scales[name] = scale.astype(np.float32)
        for name, changed in norms.items():
            original = self._source.weights[name]
            assert not isinstance(original, QuantizedView)
            self._scales[name] = norm_ratio(original.read().astype(np.float32), changed.astype(np.float32))
            self._norms[name] = values_digest([changed])

    def measured(self, name: str, tensor: QuantizedTensor) -> QuantizedTensor:
        """`tensor` itself, its error taken down."""
        view, slot = self._source.weights[name], self._slots[name]
        assert not isinstance(view, QuantizedView)
        smoothing = Smoothing(self._source.spec, self._scales)
        step = max(1, CHUNK_ELEMENTS // tensor.shape[1])
        damage = power = 0.0
        for start in range(0, tensor.shape[0], step):
            weight = view.fetch(start, min(start + step, tensor.shape[0])).astype(np.float32)
            values = smoothing.undone(slot, tensor.part(slice(start, start + step)).dequantized(), start)
            damage += float(np.square(np.subtract(weight, values, dtype=np.float64)).sum())
            power += float(np.square(weight, dtype=np.float64).sum())
        self._errors[name] = damage / power if power else 0.0
        return tensor

    def to_json(self) -> dict[str, Any]:
        """For the manifest: error by tensor, digests of the norms that changed, scales of matrices that were divided.

        Scales are float32, little-endian, in base64: `verify` undoes with them what smoothing did.
        """
        divided = {
            name: base64.b64encode(scale.astype("<f4").tobytes()).decode()
            for name, scale in self._scales.items()
            if name not in self._norms
        }
        return {"errors": dict(self._errors), "norms": dict(self._norms), "divided": divided}

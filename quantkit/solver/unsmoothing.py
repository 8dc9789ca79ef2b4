"""Smoothing taken back, or applied anew: a matrix in the original's coordinates, and in the smoothed model's.

`quantkit.solver.smoothing` multiplies the columns of a layer by s and divides what feeds the layer by s. A quantized
matrix is compared with the original's after both are undone:

    q, k, v, gate, up    column j times g'[j] / g[j], the norm in front of it as it is over what it was
    v, up                row i times s[i], where they were divided themselves
    o, down              column j divided by the s of the row of v or up that feeds it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantkit.models.spec import NORM_ROLES, ModelSpec, TensorSlot


@dataclass(frozen=True, slots=True, eq=False)
class Smoothing:
    """What a model was smoothed by: the scale of each output that was divided, by the name of the norm or matrix.

    Every scale is float32, one for each output; of norms it is the exact ratio of the original weight to the new one.
    """

    spec: ModelSpec
    scales: Mapping[str, np.ndarray]

    def undone(self, slot: TensorSlot, values: np.ndarray, start: int = 0) -> np.ndarray:
        """Rows of the matrix of `slot`, float32, from row `start` on, as they are without smoothing."""
        rows, cols = self._factors(slot)
        if rows is not None:
            values = values * rows[start : start + len(values), None]
        return values if cols is None else values / cols

    def applied(self, slot: TensorSlot, values: np.ndarray, start: int = 0) -> np.ndarray:
        """Inverse of `undone`: rows of the original's matrix as smoothing makes them."""
        rows, cols = self._factors(slot)
        if cols is not None:
            values = values * cols
        return values if rows is None else values / rows[start : start + len(values), None]

    def _factors(self, slot: TensorSlot) -> tuple[np.ndarray | None, np.ndarray | None]:
        """By what rows of a matrix were divided, and columns multiplied; None where they were not."""
        if slot.layer is None:
            return None, None
        for feeding, readers in self.spec.readers.items():
            scale = self.scales.get(self.spec.weight_name(slot.layer, feeding))
            if scale is not None and slot.role in readers:
                return self.scales.get(slot.name), self._spread(scale, slot.shape[1])
        return self.scales.get(slot.name), None

    def _spread(self, scale: np.ndarray, cols: int) -> np.ndarray:
        """`scale` for each input column; query heads that share a head of v share its scales."""
        shared = cols // len(scale)
        if shared == 1:
            return scale
        heads = scale.reshape(-1, self.spec.head_dim)
        repeated: np.ndarray = np.repeat(heads, shared, axis=0).reshape(-1)
        return repeated


def norm_names(spec: ModelSpec) -> tuple[str, ...]:
    """The norms that smoothing may change."""
    roles = [role for role in spec.readers if role in NORM_ROLES]
    return tuple(spec.weight_name(layer, role) for layer in range(spec.num_hidden_layers) for role in roles)


def divided_names(spec: ModelSpec) -> dict[str, int]:
    """The matrices whose rows smoothing may divide, with how many rows they have."""
    roles = [role for role in spec.readers if role not in NORM_ROLES]
    layers = range(spec.num_hidden_layers)
    return {spec.weight_name(layer, role): spec.layer_shape(role)[0] for layer in layers for role in roles}


def norm_ratio(original: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """original / changed in float32 as `quantkit.solver.smoothing.folded_norm` has it; 1 where nothing changed."""
    with np.errstate(all="ignore"):
        ratio = np.divide(original, changed, dtype=np.float64).astype(np.float32)
    settled: np.ndarray = np.where(original == changed, np.float32(1), ratio)
    return settled

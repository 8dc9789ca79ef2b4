"""How far quantized layers have drifted from the original's outputs, as correlations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """How far layers are from the original's outputs, as correlations with their inputs x̂.

    folds: Σ d x̂ᵀ over the tokens of every fold (`quantkit.calibration.folds`), float32 [n, cols].
    of_inputs: whether d = x - x̂, n = cols, for layers that read the same inputs and whose M is W times this; else d is
        the original's output minus W x̂, and this is the M of a single layer.
    """

    folds: tuple[Tensor, ...]
    of_inputs: bool

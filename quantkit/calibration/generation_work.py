"""How long calibration text takes to generate, so that progress can be told; free of torch, because planning asks."""

from __future__ import annotations

import math

from quantkit.calibration.samples import CalibrationOptions
from quantkit.models.spec import LINEAR_ROLES, ModelSpec

BATCH = 16
"""Sequences per forward pass; part of what the last bits of a result depend on."""


def generation_work(spec: ModelSpec, options: CalibrationOptions) -> float:
    """What `generated_samples` has to do, in the unit of `step_work`."""
    return math.ceil(options.sequences / BATCH) * steps_work(spec, 0, options.length)


def steps_work(spec: ModelSpec, start: int, stop: int) -> float:
    """Time of the steps of a batch from position `start` to `stop`: they grow evenly, so each takes the middle's."""
    return (stop - start) * step_work(spec, (start + stop - 1) / 2)


def step_work(spec: ModelSpec, position: float) -> float:
    """Time of one step of a batch with so many positions behind it, in about milliseconds of a small processor.

    Every step reads all weights, and the keys and values of the positions before.
    """
    weights = sum(math.prod(spec.layer_shape(role)) for role in LINEAR_ROLES)
    block = 0.6 + 1e-6 * weights + 4e-5 * position * spec.num_key_value_heads * spec.head_dim
    head = 1e-6 * spec.vocab_size * spec.hidden_size + 8e-5 * spec.vocab_size
    return spec.num_hidden_layers * block + head

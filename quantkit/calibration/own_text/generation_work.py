"""What calibration text takes to generate: time, so that progress can be told, and memory; free of torch, because
planning asks."""

from __future__ import annotations

import math

from quantkit.calibration.samples import CalibrationOptions
from quantkit.models.spec import ModelSpec

LARGEST_BATCH, SMALLEST_BATCH = 64, 16
"""Sequences per forward pass: enough that weights are not read for each of them."""


def batch_size(sequences: int) -> int:
    """Sequences per batch where there are so many: an even number of batches, since machines have an even number of
    cores.

    Part of what the last bits of a result depend on; the number of threads is not.
    """
    batches = 2 * math.ceil(sequences / (2 * LARGEST_BATCH))
    return max(SMALLEST_BATCH, math.ceil(sequences / batches))


def generation_memory(spec: ModelSpec, options: CalibrationOptions, *, threads: int, bfloat16: bool = False) -> int:
    """Bytes in use at most while `options.sequences` of `options.length` are generated.

    The whole model, and the larger of what is beside it: while it is read, a weight and its copy in float32; then, on
    every thread that has a batch, its keys and values and the logits of one position.
    """
    each = 2 if bfloat16 else 4
    weights = [math.prod(slot.shape) for slot in spec.slots()]
    size = min(batch_size(options.sequences), options.sequences)
    busy = min(threads, math.ceil(options.sequences / size))
    kept = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * options.length * each
    logits = spec.vocab_size * (each + 4 if bfloat16 else 4)
    return each * sum(weights) + max(8 * max(weights), busy * size * (kept + logits))


def generation_work(spec: ModelSpec, options: CalibrationOptions, *, bfloat16: bool = False) -> float:
    """What `own_text` has to do for `options.sequences` of `options.length`, in the unit of `step_work`."""
    size = batch_size(options.sequences)
    return math.ceil(options.sequences / size) * steps_work(spec, size, 0, options.length, bfloat16=bfloat16)


def steps_work(spec: ModelSpec, batch: int, start: int, stop: int, *, bfloat16: bool = False) -> float:
    """Time of the steps of a batch from position `start` to `stop`: they grow evenly, so each takes the middle's."""
    return (stop - start) * step_work(spec, batch, (start + stop - 1) / 2, bfloat16=bfloat16)


def step_work(spec: ModelSpec, batch: int, position: float, *, bfloat16: bool = False) -> float:
    """Time of one step of a batch with so many positions behind it, in about milliseconds of a small processor.

    Every step reads all weights, multiplies each with every row, reads the keys and values of the positions before,
    and goes over the logits.
    """
    weight = 2.2e-7 + 2.6e-9 * batch if bfloat16 else 6e-7 + 1.25e-8 * batch
    block = (
        0.5
        + weight * sum(math.prod(spec.layer_shape(role)) for role in spec.linear_roles)
        + batch * (1.5e-6 * (spec.intermediate_size + 4 * spec.hidden_size))
        + batch * 6e-7 * position * spec.num_key_value_heads * spec.head_dim
    )
    head = weight * spec.vocab_size * spec.hidden_size + 4e-6 * batch * spec.vocab_size
    return spec.num_hidden_layers * block + head

"""What a recovery takes: how its parts compare in work, so that the time left can be told, and memory."""

from __future__ import annotations

from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import weighed_tokens
from quantkit.errors import BadOption
from quantkit.memory import machine_memory
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planning.peak_memory import ALLOCATED, TORCH_BYTES
from quantkit.training.options import TrainingOptions

PASSES = 4.0
"""Of a training step in forward passes: forwards, backwards for inputs and for weights, and the teacher's."""
HELD = 24
"""Bytes of every weight: itself, two moments, its gradient, what is computed with, and the teacher's."""
HIDDEN, INNER = 16, 6
"""Numbers of hidden and of intermediate size that a block keeps for the way back, for every position."""
LOGITS = 4
"""Of the vocabulary's size that every position has at a time: ours, the teacher's, and their gradients."""


def recovery_work(model: Checkpoint, options: QuantizeOptions, training: TrainingOptions) -> dict[str, float]:
    """The parts in order, in tokens times weights that go forwards through the model.

    Quantization counts as generating the calibration text, both its streams, the Fisher pass, and as much again for
    statistics and the solver.
    """
    weights = sum(weight.size for weight in model.weights.values())
    calibrated = options.calibration.sequences * options.calibration.length
    steps = training.steps + training.reconstruction_steps
    return {
        "quantization": weights * 2 * (3 * calibrated + 3 * weighed_tokens(calibrated)),
        "training": weights * PASSES * steps * training.batch * training.length,
        "writing": float(weights),
    }


def training_memory(model: Checkpoint, training: TrainingOptions, threads: int) -> int:
    """Estimated peak resident bytes of a training on the CPU in float32, reconstruction's residual states aside."""
    spec = model.spec
    weights = sum(weight.size for weight in model.weights.values())
    block = HIDDEN * spec.hidden_size + INNER * spec.intermediate_size
    position = 4 * (spec.num_hidden_layers * block + LOGITS * spec.vocab_size)
    piece = 4 * weights + training.micro_batch * training.length * position
    return TORCH_BYTES + round(ALLOCATED * (HELD * weights + min(threads, training.batch) * piece))


def check_training_memory(model: Checkpoint, training: TrainingOptions, compute: Compute) -> None:
    """Raise `BadOption` when a training on the CPU takes more memory than this machine has."""
    available = machine_memory()
    needed = training_memory(model, training, compute.threads)
    if compute.device == "cpu" and available is not None and needed > available:
        raise BadOption(
            f"training needs about {needed / 1e9:,.1f} GB of memory; this machine has {available / 1e9:,.1f} GB",
            hint="shorter sequences, smaller micro-batches or fewer threads; or a GPU: --device cuda",
        )

"""How much work the parts of a recovery are, so that the time left can be told from what is done."""

from __future__ import annotations

from quantkit.calibration.samples import weighed_tokens
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.options import QuantizeOptions
from quantkit.training.options import TrainingOptions

PASSES = 4.0
"""Of a training step in forward passes: forwards, backwards for inputs and for weights, and the teacher's."""


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

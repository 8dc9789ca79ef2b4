"""How far a quantized model is from its original, on text that calibration has not seen."""

from __future__ import annotations

import numpy as np
import torch

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model


def log_probabilities(checkpoint: Checkpoint) -> torch.Tensor:
    ids = np.random.default_rng(77).integers(0, checkpoint.spec.vocab_size, (8, 50))
    return torch.log_softmax(load_model(checkpoint)(torch.from_numpy(ids)).double(), -1)


def divergence(original: Checkpoint, changed: Checkpoint) -> float:
    """Mean KL on text that calibration has not seen."""
    p, q = log_probabilities(original), log_probabilities(changed)
    return float((p.exp() * (p - q)).sum(-1).mean())

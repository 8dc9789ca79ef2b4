"""What a training makes smaller: cross-entropy on the text, divergence from a teacher, a block's own error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quantkit.models.torch_model import MiniCPM
from quantkit.training.schedule import Stage


def loss_of(stage: Stage, module: MiniCPM, teacher: MiniCPM | None, rows: Tensor) -> Tensor:
    """Mean loss in nats over the predicted tokens of `rows` [rows, length].

    Args:
        stage: how much of which loss.
        module: the model in training.
        teacher: whose predictions are aimed at; None where they do not count.
        rows: token ids; the first of each row is not predicted.
    """
    made = log_probabilities(module, rows)
    loss = made.new_zeros(())
    if stage.text:
        loss = loss + stage.text * functional.nll_loss(made.flatten(0, 1), rows[:, 1:].flatten())
    if stage.teacher and teacher is not None:
        with torch.no_grad():
            wanted = log_probabilities(teacher, rows)
        divergence = functional.kl_div(made, wanted, reduction="sum", log_target=True) / rows[:, 1:].numel()
        loss = loss + stage.teacher * divergence
    return loss


def log_probabilities(model: MiniCPM, rows: Tensor) -> Tensor:
    """Float32 [rows, length - 1, vocab] of every token but the first."""
    return functional.log_softmax(model(rows[:, :-1]).float(), dim=-1)


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of residual states [rows, length, hidden] over their squared length, mean over positions.

    Each position counts by its own length: a few at the beginning are hundreds of times longer than all others.
    """
    error = (made - wanted).square().sum(-1)
    return (error / wanted.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)).mean()

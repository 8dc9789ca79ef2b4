"""How well a model predicts rows that were kept out of training, beside its teacher."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from quantkit.models.torch_model import MiniCPM
from quantkit.threads import TorchWorkers
from quantkit.training.objective import log_probabilities
from quantkit.training.processes import Processes


def measured(
    module: MiniCPM,
    teacher: MiniCPM,
    rows: np.ndarray,
    *,
    workers: TorchWorkers,
    processes: Processes,
    device: torch.device,
) -> dict[str, float]:
    """Perplexity per token, mean KL(teacher || model) in nats, and the share of tokens on which both agree ("top1").

    rows: int64 [rows, length]; nothing is measured on none. In float32, each process its share of the rows.
    """
    if not len(rows):
        return {}

    def sums(row: Tensor) -> tuple[float, float, float]:
        made, wanted = log_probabilities(module, row), log_probabilities(teacher, row)
        text = -float(made.gather(-1, row[:, 1:, None]).double().sum())
        divergence = float((wanted.exp() * (wanted - made)).double().sum())
        return text, divergence, float((made.argmax(-1) == wanted.argmax(-1)).sum())

    mine = processes.share(torch.split(torch.from_numpy(rows).to(device), 1))
    totals = np.array(workers(sums, mine) or [(0.0, 0.0, 0.0)]).sum(0)
    text, divergence, agreed = processes.sums(list(totals), device)
    tokens = rows[:, 1:].size
    return {
        "perplexity": math.exp(min(text / tokens, 700.0)),
        "kl": max(divergence / tokens, 0.0),
        "top1": agreed / tokens,
    }

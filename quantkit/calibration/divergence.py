"""How far the predictions have moved at the end of a run, source by source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantkit.calibration.activations import HiddenStates
from quantkit.calibration.samples import LOOKED_AT, Samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_head
from quantkit.threads import torch_map

AT_A_TIME = 64
"""Positions whose logits are in memory at a time."""


def divergences(
    checkpoint: Checkpoint, samples: Samples, hidden: HiddenStates, *, head: np.ndarray | None = None
) -> list[float | None]:
    """Mean KL(original || quantized) in nats of every source's predictions, in the order of `samples.coverage.sources`.

    Of both streams after the last block; None for a source without tokens that count.

    Args:
        checkpoint: the dense model.
        samples: what `hidden` carries.
        hidden: both streams; the original's must have been followed.
        head: the quantized head, float32 [vocab, hidden]; None = it is the original's.
    """
    norm, original = load_head(checkpoint)
    norm, original = norm.to(hidden.device), original.to(hidden.device)
    heads = (original, original if head is None else torch.from_numpy(head).to(hidden.device))
    divisor = checkpoint.spec.logit_divisor

    def divergence(origin: int) -> float | None:
        mine = [number for number, own in enumerate(samples.origins) if own == origin]
        skip = hidden.skip_positions
        pairs = [torch.cat([states[i][skip:] for i in mine]) for states in (hidden.original, hidden.states)]
        taken = _spread(len(pairs[0]))
        if not taken:
            return None
        total = 0.0
        for start in range(0, len(taken), AT_A_TIME):
            here = taken[start : start + AT_A_TIME]
            p, q = (_log_probabilities(norm(x[here]) / divisor, W) for x, W in zip(pairs, heads, strict=True))
            total += float(functional.kl_div(q, p, reduction="sum", log_target=True))
        return max(total / len(taken), 0.0)

    return torch_map(divergence, range(len(samples.coverage.sources)), hidden.threads)


def _log_probabilities(normed: Tensor, head: Tensor) -> Tensor:
    return functional.log_softmax((normed @ head.T).double(), dim=-1)


def _spread(count: int) -> Sequence[int]:
    return [i * count // min(count, LOOKED_AT) for i in range(min(count, LOOKED_AT))]

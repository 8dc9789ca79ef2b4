"""Sums of squares of what every matrix reads, block by block, for some thousand tokens at a time.

A head reads the last norm's output as it is: llama.cpp's graph divides logits by `logit_divisor`, and not what they are
made of (`src/models/granite.cpp`, which is `minicpm.cpp`'s graph, too). Folding (`quantkit.models.folding`) changes
nothing of what blocks read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.activations import HiddenStates
from quantkit.calibration.samples import WAVE_TOKENS, make_samples
from quantkit.errors import NonFiniteValues
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_block, load_final_norm
from quantkit.progress import Progress, unwatched
from quantkit.threads import single_threaded_torch


def input_squares(
    checkpoint: Checkpoint,
    chunks: Sequence[np.ndarray],
    *,
    head: bool = False,
    threads: int = 1,
    device: torch.device = CPU,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """By weight name the sum of x² over all tokens, float32 [cols]: of every linear layer, with `head` of the head too.

    Sums are float64, each sequence's in turn, and rounded to float32 at the end.

    Args:
        checkpoint: any model whose weights can be read, quantized ones with the values that they stand for.
        chunks: token ids, int64 [length] each, all of one length.
        head: whether the head's inputs are measured as well.
        threads: how many to use; the result does not depend on it.
        device, bfloat16: where forwards are computed, and whether in bfloat16 (`quantkit.calibration.autocast`).
        progress: told of blocks times tokens.

    Raises:
        NonFiniteValues: NaN or infinity in a weight, or among the sums; names the weight.
    """
    sums: dict[str, Tensor] = {}
    tell = progress or unwatched
    layers, tokens, done = checkpoint.spec.num_hidden_layers, sum(map(len, chunks)), 0
    with single_threaded_torch(), torch.inference_mode():
        for wave in _waves(chunks):
            hidden = HiddenStates(
                checkpoint,
                make_samples(wave, source="text", digest=""),
                follow_original=False,
                threads=threads,
                device=device,
                bfloat16=bfloat16,
            )
            for layer in range(layers):
                tell(f"block {layer + 1} of {layers}", done, layers * tokens)
                for roles, squares in hidden.squares(load_block(checkpoint, layer).to(device)):
                    _add(sums, {checkpoint.spec.weight_name(layer, role): squares for role in roles})
                done += sum(map(len, wave))
            if head:
                _add(sums, {checkpoint.spec.head_name: hidden.each_squared(load_final_norm(checkpoint).to(device))})
    return {name: _rounded(name, total) for name, total in sums.items()}


def _waves(chunks: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    step = max(1, WAVE_TOKENS // len(chunks[0]))
    for start in range(0, len(chunks), step):
        yield chunks[start : start + step]


def _add(sums: dict[str, Tensor], squares: Mapping[str, Tensor]) -> None:
    for name, added in squares.items():
        sums[name] = sums[name] + added if name in sums else added


def _rounded(name: str, total: Tensor) -> np.ndarray:
    values: np.ndarray = total.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise NonFiniteValues(f"{name}: its inputs on this text are NaN, infinite, or too large")
    return values

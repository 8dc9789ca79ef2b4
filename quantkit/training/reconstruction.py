"""Block by block: each is fitted to what it puts out in full precision, behind blocks that are fitted already.

Two residual streams of the same text, one of the teacher and one of the model so far, stand in front of the block; the
block learns to turn the second into what the teacher makes of the first, so that it also makes up for what the blocks
before it have lost (Li et al. 2021, "BRECQ"; Chen et al. 2024, "EfficientQAT").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantkit.calibration.autocast import rounded_products
from quantkit.models.torch_model import MiniCPM, rotary_tables
from quantkit.threads import TorchWorkers
from quantkit.training.objective import reconstruction_loss

MAX_TOKENS = 1 << 17
"""Of which residual states are in memory, twice."""


class ResidualStreams:
    """The residual states of `rows` [rows, length] in front of the next block, float32 [rows, length, hidden].

    teacher: a model of the same blocks, in full precision. module: the model in training.
    """

    def __init__(
        self, teacher: MiniCPM, module: MiniCPM, rows: Tensor, *, workers: TorchWorkers, bfloat16: bool
    ) -> None:
        self._models = (teacher, module)
        self._workers = workers
        self._bfloat16 = bfloat16
        self._rotary = rotary_tables(module.spec, 0, rows.shape[1], rows.device)
        self._wanted, self._seen = (
            model.model.embed_tokens(rows).float() * model.spec.scale_emb for model in self._models
        )

    def enter(self, block: int) -> None:
        """Move the teacher's stream behind a block."""
        self._wanted = self._moved(self._models[0], block, self._wanted)

    def leave(self, block: int) -> None:
        """Move the model's stream behind the block as it is now."""
        self._seen = self._moved(self._models[1], block, self._seen)

    def loss(self, block: int) -> Callable[[Tensor], Tensor]:
        """The loss of a block, once entered, on the rows of given numbers."""
        layer = self._models[1].model.layers[block]
        return lambda numbers: reconstruction_loss(layer(self._seen[numbers], *self._rotary), self._wanted[numbers])

    def _moved(self, model: MiniCPM, block: int, states: Tensor) -> Tensor:
        layer = model.model.layers[block]

        def forwards(row: Tensor) -> Tensor:
            with rounded_products(row.device, bfloat16=self._bfloat16):
                after: Tensor = layer(row[None], *self._rotary)
            return after.float()

        return torch.cat(self._workers(forwards, states))

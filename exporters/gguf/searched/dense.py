"""How dense weights become blocks in a file of llama.cpp's types: as ggml does it, or searched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.reference.quantizer import reference_blocks
from quantkit.exporters.gguf.searched.grids import GRIDS
from quantkit.exporters.gguf.searched.guides import guide
from quantkit.exporters.gguf.searched.inputs import ExpectedInputs
from quantkit.exporters.gguf.searched.quantizer import searched_blocks
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import TensorSlot
from quantkit.tensors.views import CHUNK_ELEMENTS

Rows = Callable[[np.ndarray], np.ndarray]
"""Values (rows, cols) to blocks uint8 (rows, bytes)."""


class DenseRows:
    """What `model`'s dense matrices become. searched: with the best search, else with ggml's. threads: to be used.

    elements: weights that are worth quantizing at a time.
    """

    def __init__(self, model: Checkpoint, searched: bool, threads: int) -> None:
        self.threads = threads
        self.elements = CHUNK_ELEMENTS * (4 if searched else 1)  # columns go one after the other, so long ones pay
        self._inputs = ExpectedInputs(model) if searched else None

    def rows(self, slot: TensorSlot, block: BlockType, importance: np.ndarray | None) -> Rows:
        """What quantizes rows of a matrix, ggml's by the importance of columns.

        What it raises: see `reference_blocks` and `searched_blocks`.

        Ternary blocks are ggml's: there is nothing to search in them.
        """
        if self._inputs is None or block not in GRIDS:
            return lambda values: reference_blocks(slot.name, block, values, importance)
        found = guide(self._inputs.of(slot), slot.shape[1])
        return lambda values: searched_blocks(slot.name, block, values, found)

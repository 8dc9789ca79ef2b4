"""How dense weights become blocks in a file of llama.cpp's types: as ggml does it, or searched."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.imatrix.matrix import ImportanceMatrix
from quantkit.exporters.gguf.reference import quantizer
from quantkit.exporters.gguf.reference.quantizer import reference_blocks
from quantkit.exporters.gguf.searched.grids import GRIDS
from quantkit.exporters.gguf.searched.guides import guide
from quantkit.exporters.gguf.searched.inputs import ExpectedInputs, with_energies
from quantkit.exporters.gguf.searched.quantizer import searched_blocks
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import TensorSlot
from quantkit.tensors.views import CHUNK_ELEMENTS

SEARCHED = "searched"
"""The algorithm of this package."""
SIMPLE_WORK = 1e-5
"""What one weight takes that is rounded as it stands, see `Unit.work`; the other figures are by algorithm, without
numba and with it, of all types about alike."""
REFERENCE_WORK, SEARCHED_WORK = (5e-5, 2.5e-5), (5e-4, 3.6e-4)
SQUARES, FLOAT32_BYTES = 5, 4
"""Square matrices of a layer's inputs that a search holds: their moments, and what is made of them."""
Rows = Callable[[np.ndarray], np.ndarray]
"""Values (rows, cols) to blocks uint8 (rows, bytes)."""


class DenseRows:
    """What the dense matrices of a model become.

    Args:
        model: whose they are.
        algorithm: "searched", or "reference" for what ggml makes of them.
        threads: to be used.
        importance: what columns count, where a file says it. A search takes it for the energies of inputs, and what
            weights tell for the rest of their moments.

    elements: weights that are worth quantizing at a time. memory: see `PlannedArtifact.memory`.
    """

    def __init__(
        self, model: Checkpoint, algorithm: str, threads: int, importance: ImportanceMatrix | None = None
    ) -> None:
        searched = algorithm == SEARCHED
        self.threads = threads
        self.elements = CHUNK_ELEMENTS * (4 if searched else 1)  # columns go one after the other, so long ones pay
        self._inputs = ExpectedInputs(model) if searched else None
        widest = max(slot.shape[-1] for slot in model.spec.slots())
        self.memory = SQUARES * FLOAT32_BYTES * widest**2 if searched else 0
        self._importance = importance

    def work(self, block: BlockType) -> float:
        """What a weight takes in blocks of a type, see `Unit.work`."""
        compiled = find_spec("numba") is not None
        if self._inputs is not None and block in GRIDS:
            return SEARCHED_WORK[compiled]
        return REFERENCE_WORK[compiled] if block in quantizer.SEARCHED else SIMPLE_WORK

    def rows(self, name: str, slot: TensorSlot, block: BlockType) -> Rows:
        """What quantizes rows of a matrix, `name` in the file; `reference_blocks` and `searched_blocks` say what it
        raises.

        Ternary blocks are ggml's: there is nothing to search in them.
        """
        cols = slot.shape[1]
        weights = None if self._importance is None else self._importance.of(name, cols)
        if self._inputs is None or block not in GRIDS:
            return lambda values: reference_blocks(slot.name, block, values, weights)
        moments = self._inputs.of(slot)
        found = guide(moments if weights is None else with_energies(moments, weights), cols)
        return lambda values: searched_blocks(slot.name, block, values, found)

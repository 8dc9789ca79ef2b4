"""The blocks of a model, quantized one after the other on the outputs of those before."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quantkit.calibration import HiddenStates
from quantkit.calibration_text import Samples
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.family import LAYER_NAMES
from quantkit.loading import load_block
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.spec import QuantSpec


class BlockStream:
    """Holds the hidden states in front of the next block, and the quantized weights of the current one.

    layer: the current block, -1 before the first. tensors: its quantized weights by name.
    """

    def __init__(
        self, source: Checkpoint, specs: Mapping[str, QuantSpec], method: Method, samples: Samples, *, threads: int
    ) -> None:
        self.coverage = samples.coverage
        self.layer = -1
        self.tensors: dict[str, QuantizedTensor] = {}
        self._source = source
        self._specs = specs
        self._method = method
        self._threads = threads
        self._hidden = HiddenStates(source, samples, threads=threads)

    def advance(self) -> dict[str, TensorReport]:
        """Quantize the next block in place of the current one; return the reports of its weights."""
        self.layer += 1
        self.tensors = {}
        reports: dict[str, TensorReport] = {}
        block = load_block(self._source, self.layer)
        for roles, statistics in self._hidden.stages(block):
            for role in roles:
                name = f"model.layers.{self.layer}.{LAYER_NAMES[role]}"
                weight = block.get_parameter(LAYER_NAMES[role])
                try:
                    tensor, reports[name] = self._method.quantize(
                        weight.numpy(), self._specs[name], statistics, threads=self._threads
                    )
                except QuantkitError as error:
                    raise type(error)(f"{name}: {error}", hint=error.hint) from None
                self.tensors[name] = tensor
                weight.copy_(torch.from_numpy(tensor.dequantized()))
        return reports

"""The blocks of a model, quantized one after the other on the outputs of those before.

For every linear layer: aim at the weights that make up for earlier losses (`quantkit.propagation`), let the method
choose codes for them, and keep the result only if it beats round-to-nearest on sequences that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from quantkit.calibration import InputStatistics
from quantkit.calibration_text import Samples
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.family import LAYER_NAMES, Role
from quantkit.grid import round_to_nearest
from quantkit.hidden_states import HiddenStates, Stage
from quantkit.journal import Journal
from quantkit.loading import load_block
from quantkit.model import Block
from quantkit.parallel import single_threaded_torch
from quantkit.propagation import propagated_target
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.resumption import decoded_block, encoded_block
from quantkit.spec import QuantSpec


class BlockStream:
    """Holds the hidden states in front of the next block, and the quantized weights of the current one.

    layer: the current block, -1 before the first. tensors: its quantized weights by name. wanted: grid and method of
    every weight that is quantized, by name; the others stay as they are.
    """

    def __init__(
        self,
        source: Checkpoint,
        wanted: Mapping[str, tuple[QuantSpec, Method]],
        samples: Samples,
        *,
        skip_positions: int,
        propagate: bool,
        threads: int,
        journal: Journal | None = None,
    ) -> None:
        self.coverage = samples.coverage
        self.layer = -1
        self.tensors: dict[str, QuantizedTensor] = {}
        self._source = source
        self._wanted = wanted
        self._threads = threads
        self._journal = journal
        self._hidden = HiddenStates(
            source, samples, skip_positions=skip_positions, follow_original=propagate, threads=threads
        )

    def advance(self) -> dict[str, TensorReport]:
        """Quantize the next block, or recall it, in place of the current one; return the reports of its weights."""
        self.layer += 1
        self.tensors = {}
        original = load_block(self._source, self.layer)
        block = deepcopy(original)
        step = f"block-{self.layer:05}"
        kept = self._journal.recall(step) if self._journal is not None else None
        if kept is None:
            with single_threaded_torch():  # a product split over threads rounds otherwise than on one
                reports = self._solve(block, original)
            if self._journal is not None:
                self._journal.keep(step, encoded_block(self.tensors, reports))
            return reports
        self.tensors, reports = decoded_block(kept)
        for name, tensor in self.tensors.items():
            weight = block.get_parameter(name.removeprefix(f"model.layers.{self.layer}."))
            weight.copy_(torch.from_numpy(tensor.dequantized()))
        self._hidden.advance(block, original)
        return reports

    def _solve(self, block: Block, original: Block) -> dict[str, TensorReport]:
        reports: dict[str, TensorReport] = {}
        for stage in self._hidden.stages(block, original):
            for role in stage.roles:
                name = f"model.layers.{self.layer}.{LAYER_NAMES[role]}"
                if name not in self._wanted:
                    continue
                weight = block.get_parameter(LAYER_NAMES[role])
                try:
                    self.tensors[name], reports[name] = self._quantized(weight, *self._wanted[name], stage, role)
                except QuantkitError as error:
                    raise type(error)(f"{name}: {error}", hint=error.hint) from None
                weight.copy_(torch.from_numpy(self.tensors[name].dequantized()))
        return reports

    def _quantized(
        self, W: Tensor, spec: QuantSpec, method: Method, stage: Stage, role: Role
    ) -> tuple[QuantizedTensor, TensorReport]:
        if not method.needs_calibration:
            return method.quantize(W.numpy(), spec, None, threads=self._threads)
        target, strength = W, None
        held_hessian = torch.from_numpy(stage.held_out.hessian)
        drift = stage.drift.get(role)
        if drift is not None:
            fitted = torch.from_numpy(stage.fitted.hessian)
            target, strength = propagated_target(W, fitted, drift.fitted, held_hessian, drift.held_out)
        everything = InputStatistics(
            stage.fitted.hessian + stage.held_out.hessian, stage.fitted.tokens + stage.held_out.tokens
        )
        tensor, report = method.quantize(target.numpy(), spec, everything, threads=self._threads)
        report = replace(report, strength=strength)
        if report.fallback is not None or not stage.held_out.tokens:
            return tensor, report
        rounded = round_to_nearest(W.numpy(), spec)
        lost, lost_by_rounding = (
            _held_out_loss(torch.from_numpy(q.dequantized()) - W, held_hessian, drift.held_out if drift else None)
            for q in (tensor, rounded)
        )
        if lost <= lost_by_rounding:
            return tensor, report
        return rounded, replace(report, fallback="it lost to round-to-nearest on held-out sequences")


def _held_out_loss(change: Tensor, hessian: Tensor, drift: Tensor | None) -> float:
    """Squared output error on held-out tokens when the weights change by `change`, up to a constant.

    ||X̂ changeᵀ - D||² = tr(change Hₕ changeᵀ) - 2 tr(change Mₕᵀ) + ||D||²
    """
    D = change.double()
    loss = float(((D @ hessian) * D).sum())
    return loss if drift is None else loss - 2 * float((D * drift).sum())

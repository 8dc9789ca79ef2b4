"""The blocks of a model, quantized one after the other on the outputs of those before.

First the block is smoothed (`quantkit.smoothing`): another set of weights for the same function, which takes the
original's place. Then, for every linear layer: aim at the weights that make up for earlier losses
(`quantkit.propagation`), let the method choose codes for them, and keep the result only if it beats round-to-nearest
on sequences that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration import CPU, InputStatistics
from quantkit.calibration_text import Samples
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.family import LAYER_NAMES, Role
from quantkit.grid import round_to_nearest
from quantkit.hidden_states import HiddenStates, Stage
from quantkit.journal import Journal
from quantkit.loading import load_block
from quantkit.methods._error import output_energy
from quantkit.model import Block
from quantkit.parallel import single_threaded_torch
from quantkit.propagation import propagated_target
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.resumption import decoded_block, encoded_block
from quantkit.smoothing import READERS, smooth, smoothable, weight_name
from quantkit.smoothing_search import Choice, chosen_scales
from quantkit.spec import QuantSpec
from quantkit.tensor import TensorView


class BlockStream:
    """Holds the hidden states in front of the next block, and the quantized weights of the current one.

    layer: the current block, -1 before the first. tensors: its quantized weights by name. norms: its norms that
    smoothing has changed, in their own dtypes, by name. wanted: grid and method of every weight that is quantized, by
    name; the others stay as they are. smooth: see `quantkit.smoothing.smoothable`. device: where blocks are computed.
    """

    def __init__(
        self,
        source: Checkpoint,
        wanted: Mapping[str, tuple[QuantSpec, Method]],
        samples: Samples,
        *,
        skip_positions: int,
        propagate: bool,
        smooth: bool | None = None,
        threads: int,
        device: torch.device = CPU,
        journal: Journal | None = None,
    ) -> None:
        self.coverage = samples.coverage
        self.layer = -1
        self.tensors: dict[str, QuantizedTensor] = {}
        self.norms: dict[str, np.ndarray] = {}
        self._smooth = smooth
        self._source = source
        self._wanted = wanted
        self._threads = threads
        self._device = device
        self._journal = journal
        self._hidden = HiddenStates(
            source,
            samples,
            skip_positions=skip_positions,
            follow_original=propagate,
            threads=threads,
            device=device,
        )

    def advance(self) -> dict[str, TensorReport]:
        """Quantize the next block, or recall it, in place of the current one; return the reports of its weights."""
        self.layer += 1
        self.tensors = {}
        original = load_block(self._source, self.layer).to(self._device)
        step = f"block-{self.layer:05}"
        kept = self._journal.recall(step) if self._journal is not None else None
        if kept is None:
            with single_threaded_torch():  # a product split over threads rounds otherwise than on one
                choices = self._choices(original)
                scales = {role: choice.scale for role, choice in choices.items() if choice.scale is not None}
                block = self._smoothed(original, scales)
                reports = self._solve(block, original)
            for name, choice in ((weight_name(self.layer, x), c) for role, c in choices.items() for x in READERS[role]):
                reports[name] = replace(reports[name], smoothing=choice.exponent)
            if self._journal is not None:
                self._journal.keep(step, encoded_block(self.tensors, reports, scales))
            return reports
        self.tensors, reports, scales = decoded_block(kept)
        block = self._smoothed(original, scales)
        for name, tensor in self.tensors.items():
            weight = block.get_parameter(name.removeprefix(f"model.layers.{self.layer}."))
            weight.copy_(torch.from_numpy(tensor.dequantized()))
        self._hidden.advance(block, original)
        return reports

    def _choices(self, original: Block) -> dict[Role, Choice]:
        """Scales for the layers behind each norm or matrix that may be divided."""
        may_be = smoothable(self._wanted, self.layer, self._smooth)
        if not may_be:
            return {}
        before = {READERS[role]: role for role in may_be}
        names = {role: weight_name(self.layer, role) for role in LAYER_NAMES}
        specs = {role: self._wanted[name][0] for role, name in names.items() if name in self._wanted}
        smoothed = deepcopy(original)
        choices: dict[Role, Choice] = {}
        for inputs in self._hidden.inputs(original):
            role = before.get(inputs.roles)
            if role is None:
                continue
            feeding, dtype = smoothed.get_parameter(LAYER_NAMES[role]), self._dtype(role)
            choice = chosen_scales(
                original, role, inputs, feeding=feeding, specs=specs, dtype=dtype, threads=self._threads
            )
            if choice.scale is not None:
                smooth(smoothed, {role: choice.scale}, {role: dtype})
            choices[role] = choice
        return choices

    def _smoothed(self, original: Block, scales: Mapping[Role, np.ndarray]) -> Block:
        """Smooth `original`, which stays the same function, and return a copy of it to quantize."""
        norms = smooth(original, scales, {role: self._dtype(role) for role in scales})
        self.norms = {weight_name(self.layer, role): weight for role, weight in norms.items()}
        return deepcopy(original)

    def _dtype(self, role: Role) -> np.dtype:
        weight = self._source.weights[weight_name(self.layer, role)]
        return weight.dtype if isinstance(weight, TensorView) else np.dtype(np.float32)

    def _solve(self, block: Block, original: Block) -> dict[str, TensorReport]:
        reports: dict[str, TensorReport] = {}
        for stage in self._hidden.stages(block, original):
            for role in stage.roles:
                name = weight_name(self.layer, role)
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
            return method.quantize(W.cpu().numpy(), spec, None, threads=self._threads)
        target, strength = W, None
        held_hessian = stage.held_out.hessian
        drift = stage.drift.get(role)
        if drift is not None:
            target, strength = propagated_target(
                W, stage.fitted.hessian, drift.fitted, held_hessian, drift.held_out, threads=self._threads
            )
        everything = InputStatistics(
            stage.fitted.hessian + stage.held_out.hessian, stage.fitted.tokens + stage.held_out.tokens
        )
        tensor, report = method.quantize(target.cpu().numpy(), spec, everything, threads=self._threads)
        report = replace(report, strength=strength)
        if report.fallback is not None or not stage.held_out.tokens:
            return tensor, report
        rounded = round_to_nearest(W.cpu().numpy(), spec)
        changes = (torch.from_numpy(q.dequantized()).to(W.device) - W for q in (tensor, rounded))
        H, M = held_hessian.float(), drift.held_out if drift is not None else None
        lost, lost_by_rounding = (_held_out_loss(change, H, M, self._threads) for change in changes)
        if lost <= lost_by_rounding:
            return tensor, report
        return rounded, replace(report, fallback="it lost to round-to-nearest on held-out sequences")


def _held_out_loss(change: Tensor, hessian: Tensor, drift: Tensor | None, threads: int) -> float:
    """Squared output error on held-out tokens when the weights change by `change`, up to a constant.

    ||X̂ changeᵀ - D||² = tr(change Hₕ changeᵀ) - 2 tr(change Mₕᵀ) + ||D||²
    """
    loss = output_energy(change, hessian, threads)
    return loss if drift is None else loss - 2 * float((change * drift).sum())

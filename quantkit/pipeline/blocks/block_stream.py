"""The blocks of a model, quantized one after the other on the outputs of those before.

First the block is smoothed (`quantkit.solver.smoothing`): another set of weights for the same function, which takes the
original's place. Then its linear layers are quantized, those that read the same inputs together
(`quantkit.pipeline.blocks.layer_group`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from quantkit.artifacts.journal import Journal
from quantkit.calibration.activations import HiddenStates, Inputs
from quantkit.calibration.divergence import divergences
from quantkit.calibration.fisher import OuterStatistics, Sensitivities, sensitivities
from quantkit.calibration.samples import Samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_block, read_float32
from quantkit.models.spec import BLOCKS, EMBEDDING, NORM_ROLES, Role
from quantkit.models.torch_model import Block
from quantkit.pipeline.blocks.layer_group import StageSolver
from quantkit.pipeline.blocks.left_out import Task
from quantkit.pipeline.resumption import decoded_block, encoded_block
from quantkit.pipeline.run_work import FISHER, LAST_LOOK, OUTER, RunWork
from quantkit.protocols import InputScales, Layer, Method, Readers, TensorReport
from quantkit.solver.smoothing import smooth, smoothable
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import TensorView
from quantkit.threads import single_threaded_torch

NOT_WEIGHED = Sensitivities({}, {})
"""Of a block whose outputs and positions all count alike."""


class BlockStream:
    """Holds the hidden states in front of the next block, and the quantized weights of the current one.

    layer: the current block, -1 before the first. tensors: its quantized weights by name. norms: its norms that
    smoothing has changed, in their own dtypes, by name. scales: what its outputs were divided by. wanted: grid and
    method of every weight that is quantized, by name; the others stay as they are. smooth: see
    `quantkit.solver.smoothing.smoothable`. fisher: whether errors of outputs count by what they do to the predictions
    (`quantkit.calibration.fisher`). device: where blocks are computed. bfloat16: whether their layers compute in it
    (`quantkit.calibration.autocast`).
    """

    def __init__(
        self,
        source: Checkpoint,
        wanted: Mapping[str, tuple[Scheme, Method]],
        samples: Samples,
        *,
        skip_positions: int,
        propagate: bool,
        smooth: bool | None = None,
        fisher: bool = True,
        threads: int,
        device: torch.device = CPU,
        bfloat16: bool = False,
        journal: Journal | None = None,
        work: RunWork | None = None,
    ) -> None:
        self.coverage = samples.coverage
        self.layer = -1
        self.tensors: dict[str, QuantizedTensor] = {}
        self.norms: dict[str, np.ndarray] = {}
        self.scales: Mapping[Role, np.ndarray] = {}
        self._smooth = smooth
        self._source = source
        self._spec = source.spec
        self._wanted = wanted
        self._threads = threads
        self._device = device
        self._bfloat16 = bfloat16
        self._journal = journal
        methods = {name: method for name, (_, method) in wanted.items()}
        self._work = work or RunWork(source, methods, samples, fisher=fisher, progress=None)
        self._samples = samples
        self._skip_positions = skip_positions
        self._weighed = fisher and any(method.weighs_outputs for _, method in wanted.values())
        self._outer_roles = {
            slot.name: slot.role for slot in source.spec.slots() if slot.layer is None and slot.name in wanted
        }
        calibrated = any(wanted[name][1].needs_calibration for name in self._outer_roles)
        self._outer_sums = OuterStatistics.none_yet(source.spec.hidden_size, device) if calibrated else None
        self._hidden = HiddenStates(
            source,
            samples,
            skip_positions=skip_positions,
            follow_original=propagate,
            threads=threads,
            device=device,
            bfloat16=bfloat16,
        )

    def advance(self) -> dict[str, TensorReport]:
        """Quantize the next block, or recall it, in place of the current one; return the reports of its weights."""
        if self.layer < 0 and EMBEDDING in self.outer:
            self._hidden.begin_with(self.outer[EMBEDDING][0].dequantized())
        self.layer += 1
        self.tensors = {}
        step = f"block-{self.layer:05}"
        kept = self._journal.recall(step) if self._journal is not None else None
        if kept is not None:
            self._work.skip_block(self.layer)
        # It reads blocks itself, so it goes first.
        sensitivity = self._sensitivities[self.layer] if kept is None else NOT_WEIGHED
        original = load_block(self._source, self.layer).to(self._device)
        if kept is None:
            with single_threaded_torch():  # a product split over threads rounds otherwise than on one
                choices = self._choices(original)
                scales = {role: choice.scale for role, choice in choices.items() if choice.scale is not None}
                block = self._smoothed(original, scales)
                reports = self._solve(block, original, _smoothed_outputs(sensitivity, scales))
            for role, choice in choices.items():
                for name in map(self._name, self._spec.readers[role]):
                    reports[name] = replace(reports[name], smoothing=choice.exponent)
            if self._journal is not None:
                self._journal.keep(step, encoded_block(self.tensors, reports, scales))
            return reports
        self.tensors, reports, scales = decoded_block(kept)
        block = self._smoothed(original, scales)
        for name, tensor in self.tensors.items():
            weight = block.get_parameter(name.removeprefix(f"{BLOCKS}{self.layer}."))
            weight.copy_(torch.from_numpy(tensor.dequantized()))
        self._hidden.advance(block, original)
        return reports

    @cached_property
    def outer(self) -> Mapping[str, tuple[QuantizedTensor, TensorReport]]:
        """Embedding and head by name, as far as they are quantized, and their reports; or as an earlier run has kept
        them."""
        step = "outer"
        kept = self._journal.recall(step) if self._journal is not None and self._outer_roles else None
        if kept is not None:
            self._work.skip(OUTER)
            tensors, reports, _ = decoded_block(kept)
            return {name: (tensor, reports[name]) for name, tensor in tensors.items()}
        found = {}
        if self._outer_sums is not None:
            _ = self._sensitivities  # fills the sums, and is a stage of its own
        for number, (name, role) in enumerate(self._outer_roles.items()):
            self._work.stage(OUTER)(name, number, len(self._outer_roles))
            found[name] = self._outer(name, role)
        if self._journal is not None and found:
            tensors = {name: tensor for name, (tensor, _) in found.items()}
            self._journal.keep(step, encoded_block(tensors, {name: report for name, (_, report) in found.items()}, {}))
        return found

    def _outer(self, name: str, role: Role) -> tuple[QuantizedTensor, TensorReport]:
        scheme, method = self._wanted[name]
        statistics = None
        if self._outer_sums is not None:
            statistics = self._outer_sums.of(role, tied=self._spec.tie_word_embeddings)
        layer = Layer(name, read_float32(self._source.weights[name]), scheme)
        (made,) = method.quantize([layer], statistics, threads=self._threads)
        return made

    @property
    def divergences(self) -> list[float | None] | None:
        """KL of every source after the last block (`quantkit.calibration.divergence`).

        None before, and where the original's stream was not followed.
        """
        finished = self.layer + 1 == self._spec.num_hidden_layers and self._hidden.original
        return self._divergences if finished else None

    @cached_property
    def _divergences(self) -> list[float | None]:
        tell = self._work.stage(LAST_LOOK)
        tell("measuring predictions", 0, 1)
        outer = self.outer.get(self._spec.head_name)
        head = None if outer is None else outer[0].dequantized()
        with single_threaded_torch():
            found = divergences(self._source, self._samples, self._hidden, head=head)
        tell("measuring predictions", 1, 1)
        return found

    def _choices(self, original: Block) -> dict[Role, InputScales]:
        """Scales for the layers behind each norm or matrix that may be divided."""
        may_be = smoothable(self._spec, self._wanted, self.layer, self._smooth)
        if not may_be:
            return {}
        self._work.begin_block(self.layer, "smoothing")
        before = {self._spec.readers[role]: role for role in may_be}
        smoothed = deepcopy(original)
        choices: dict[Role, InputScales] = {}
        for inputs in self._hidden.inputs(original):
            role = before.get(inputs.roles)
            if role is None:
                continue
            readers = self._readers(original, role, inputs, feeding=smoothed.weight(role))
            _, method = self._wanted[self._name(inputs.roles[0])]
            choice = method.input_scales(readers, threads=self._threads)
            if choice.scale is not None:
                smooth(smoothed, {role: choice.scale}, {role: readers.feeding_dtype})
            choices[role] = choice
        return choices

    def _readers(self, original: Block, before: Role, inputs: Inputs, *, feeding: Tensor) -> Readers:
        names = {role: self._name(role) for role in inputs.roles}
        own = self._name(before)
        return Readers(
            layers=tuple(
                Layer(name, original.weight(role).detach().cpu().numpy(), self._wanted[name][0])
                for role, name in names.items()
            ),
            folds=inputs.folds,
            feeding=feeding,
            feeding_scheme=None if before in NORM_ROLES else self._wanted[own][0],
            feeding_dtype=self._dtype(before),
            head_dim=original.self_attn.head_dim,
        )

    def _smoothed(self, original: Block, scales: Mapping[Role, np.ndarray]) -> Block:
        """Smooth `original`, which stays the same function, and return a copy of it to quantize."""
        norms = smooth(original, scales, {role: self._dtype(role) for role in scales})
        self.norms = {self._name(role): weight for role, weight in norms.items()}
        self.scales = scales
        return deepcopy(original)

    def _name(self, role: Role) -> str:
        return self._spec.weight_name(self.layer, role)

    def _dtype(self, role: Role) -> np.dtype:
        weight = self._source.weights[self._name(role)]
        return weight.dtype if isinstance(weight, TensorView) else np.dtype(np.float32)

    @cached_property
    def _sensitivities(self) -> Sequence[Sensitivities]:
        unweighed = [NOT_WEIGHED] * self._source.spec.num_hidden_layers
        if not self._weighed and self._outer_sums is None:
            return unweighed
        with single_threaded_torch():
            found = sensitivities(
                self._source,
                self._samples.sequences,
                counts=self._hidden.counts,
                outer=self._outer_sums,
                skip_positions=self._skip_positions,
                threads=self._threads,
                device=self._device,
                bfloat16=self._bfloat16,
                progress=self._work.stage(FISHER),
            )
        return found if self._weighed else unweighed

    def _solve(self, block: Block, original: Block, sensitivity: Sensitivities) -> dict[str, TensorReport]:
        reports: dict[str, TensorReport] = {}
        self._work.begin_block(self.layer)
        for stage in self._hidden.stages(block, original, sensitivity.positions):
            parameters = {self._name(role): block.weight(role) for role in stage.roles}
            tasks = {
                name: Task(parameters[name], *self._wanted[name], sensitivity.outputs.get(role))
                for name, role in zip(parameters, stage.roles, strict=True)
                if name in self._wanted
            }
            for name, (tensor, report) in StageSolver(stage, self._threads, turn=self.layer).quantized(tasks).items():
                self.tensors[name], reports[name] = tensor, report
                parameters[name].copy_(torch.from_numpy(tensor.dequantized()))
            self._work.end_layers(self.layer, stage.roles)
        return reports


def _smoothed_outputs(sensitivity: Sensitivities, scales: Mapping[Role, np.ndarray]) -> Sensitivities:
    """Where v is divided by s, its outputs count s times as much."""
    if Role.V not in scales or Role.V not in sensitivity.outputs:
        return sensitivity
    G = sensitivity.outputs[Role.V]
    scale = torch.from_numpy(scales[Role.V]).to(G.device)
    return replace(sensitivity, outputs={**sensitivity.outputs, Role.V: G * scale * scale[:, None]})

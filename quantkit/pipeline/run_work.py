"""How much work the stages of a quantization run are, so that the time left can be told from what is done.

The unit is a millisecond of one core of the machine on which the costs below were measured, with gptq and the default
options on models of 256 and 1024 channels. Another machine has another unit; what counts is the ratio of the stages,
which tests/pipeline/test_run_work.py holds to a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantkit.calibration.own_text.generation_work import generation_work
from quantkit.calibration.own_text.prompts import bundled_openings
from quantkit.calibration.samples import LOOKED_AT, CalibrationOptions, Samples, weighed_tokens
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import ModelSpec, Role
from quantkit.progress import Progress, StagedWork
from quantkit.protocols import Method

BILLION = 1e9
ROWS = 128
"""Rows that are solved together."""
CALIBRATION_TEXT, FISHER, OUTER = "calibration text", "Fisher pass", "embedding and head"
LAST_LOOK, WRITING = "last look", "writing"
"""Stages of a run besides its blocks."""


class RunWork:
    """The stages of one run: calibration text, Fisher pass, every block, and writing, which goes on beside the others.

    Args:
        model: the dense model.
        methods: of every weight that is quantized, by name.
        calibration: what calibrated methods run on; None where there are none, and writing is all there is.
        fisher: whether there is a Fisher pass, where a method asks for it.
        bfloat16: whether calibration text is generated in it.
        progress: who is told.
    """

    def __init__(
        self,
        model: Checkpoint,
        methods: Mapping[str, Method],
        calibration: CalibrationOptions | Samples | None,
        *,
        fisher: bool,
        bfloat16: bool = False,
        progress: Progress | None,
    ) -> None:
        self._spec = model.spec
        self._layers = model.spec.num_hidden_layers
        self._layer_work: dict[Role, float] = {}
        weights: dict[str, float] = {}
        if calibration is not None:
            weighed = fisher and any(method.weighs_outputs for method in methods.values())
            tokens = _tokens(calibration)
            self._layer_work = {role: _layer_work(model.spec, role, tokens) for role in model.spec.linear_roles}
            weights[CALIBRATION_TEXT] = _generation(model.spec, calibration, bfloat16=bfloat16)
            weights[FISHER] = _fisher(model.spec, weighed_tokens(tokens)) if weighed else 0.0
            outer = [slot for slot in model.spec.slots() if slot.layer is None and slot.name in methods]
            if outer:
                weights[OUTER] = sum(_solution(*slot.shape, weighed=False) for slot in outer)
            weights |= dict.fromkeys(map(_block, range(self._layers)), sum(self._layer_work.values()))
            weights[LAST_LOOK] = _last_look(model.spec, calibration)
        weights[WRITING] = 1e-5 * sum(weight.size for weight in model.weights.values())
        self._work = StagedWork(progress, weights)

    @property
    def total(self) -> float:
        """All of it, in milliseconds of one core of the machine of the unit."""
        return self._work.total

    def stage(self, name: str) -> Progress:
        """The progress of a stage beside the blocks, in any unit of its own."""
        return self._work.stage(name, beside=name == WRITING)

    def skip(self, name: str) -> None:
        """Take out a stage that need not be done."""
        self._work.skip(name)

    def skip_block(self, layer: int) -> None:
        """Take out a block that an earlier run has done."""
        self._work.skip(_block(layer))

    def begin_block(self, layer: int, what: str | None = None) -> None:
        """Tell of block `layer`, with `what` comes first in it: its first layers, unless told otherwise."""
        self._tell_block(layer, what or self._group_name(self._spec.linear_roles[0]), 0.0)

    def end_layers(self, layer: int, roles: Sequence[Role]) -> None:
        """Tell of block `layer` when its layers `roles` are done, with those that come next."""
        linear = self._spec.linear_roles
        position = linear.index(roles[-1]) + 1
        done = sum(self._layer_work[each] for each in linear[:position])
        self._tell_block(layer, self._group_name(linear[min(position, len(linear) - 1)]), done)

    def _group_name(self, role: Role) -> str:
        """The layers that read what `role` reads: "q,k,v"."""
        return next(",".join(group.roles) for group in self._spec.groups if role in group.roles)

    def _tell_block(self, layer: int, what: str, done: float) -> None:
        tell = self._work.stage(_block(layer))
        tell(f"block {layer + 1} of {self._layers}: {what}", done, sum(self._layer_work.values()))


def _block(layer: int) -> str:
    return f"block {layer}"


def _tokens(calibration: CalibrationOptions | Samples) -> int:
    if isinstance(calibration, CalibrationOptions):
        return calibration.sequences * calibration.length
    return sum(map(len, calibration.sequences))


def _block_weights(spec: ModelSpec) -> int:
    return sum(math.prod(spec.layer_shape(role)) for role in spec.linear_roles)


def _head_weights(spec: ModelSpec) -> int:
    return spec.vocab_size * spec.hidden_size


def _generation(spec: ModelSpec, calibration: CalibrationOptions | Samples, *, bfloat16: bool) -> float:
    if not isinstance(calibration, CalibrationOptions) or not calibration.own_text:
        return 0.0
    own = replace(calibration, files=(), sequences=calibration.shares()[-1])
    return generation_work(spec, own, bfloat16=bfloat16)


def _last_look(spec: ModelSpec, calibration: CalibrationOptions | Samples) -> float:
    """Both heads and the logarithms of what they say, in double precision, at some positions of each source."""
    if isinstance(calibration, CalibrationOptions):
        own = {opening.kind for opening in bundled_openings()} if calibration.own_text else set()
        sources = len(calibration.files) + len(own)
    else:
        sources = len(calibration.coverage.sources)
    positions = min(_tokens(calibration), sources * LOOKED_AT)
    return positions * (5e-8 * _head_weights(spec) + 2e-5 * spec.vocab_size)


def _fisher(spec: ModelSpec, tokens: int) -> float:
    """Forwards, forwards again, and backwards, for many tokens at once."""
    block = 0.027 + 3.7e-8 * _block_weights(spec)
    head = 3.5e-8 * _head_weights(spec) + 1e-5 * spec.vocab_size
    return tokens * (spec.num_hidden_layers * block + head)


def _layer_work(spec: ModelSpec, role: Role, tokens: int) -> float:
    """Both forwards, the statistics of the inputs (for the first of the layers that share them), and the solution."""
    rows, cols = spec.layer_shape(role)
    leads = any(role is group.roles[0] for group in spec.groups)
    seen = tokens * (1.4e-5 * cols + cols * (11 * rows + (13 * cols if leads else 0)) / BILLION)
    return seen + _solution(rows, cols, weighed=role in spec.weighed_roles)


def _solution(rows: int, cols: int, *, weighed: bool) -> float:
    """Loops over columns, for every few rows, and products."""
    loop = cols * (0.2 + (0.1 if weighed else 0.04) * math.ceil(rows / ROWS))
    return loop + cols**2 * (120 * rows + 32 * cols) / BILLION

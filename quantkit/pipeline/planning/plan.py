"""What a run would cost and whether its result would be usable, before any work is done.

`plan` opens headers only. The sizes it prints are the sums of the very layouts that `publish` would write, so they
are exact, not estimates; memory and time are estimates, and say so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import registry
from quantkit.errors import MissingDependency, UnsupportedSpec
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.models.folding import with_architecture
from quantkit.models.inspection import AttentionCost, attention_costs, sparse_facts
from quantkit.pipeline.card.about import About
from quantkit.pipeline.card.planned import with_card, with_head
from quantkit.pipeline.card.source import about, begun
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planned_model import decided, planned
from quantkit.pipeline.planning.attention import attention_line
from quantkit.pipeline.planning.duration import Pace, export_seconds, measured_pace, run_seconds
from quantkit.pipeline.planning.peak_memory import run_memory, streaming_memory
from quantkit.pipeline.planning.recommendation import Recommendation, recommended
from quantkit.pipeline.planning.target import ONLY_TYPE, Target, parse_target
from quantkit.pipeline.planning.verdicts import as_written, loading_line, taking, verdicts
from quantkit.protocols import ExportOptions
from quantkit.tensors.views import QuantizedView, TensorView, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWeight:
    """One tensor of the result: what it becomes ("int4 g128 sym", "bfloat16") and by which method, None = as it is."""

    name: str
    shape: tuple[int, ...]
    type: str
    method: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of `quantkit plan`.

    peak_memory_bytes and seconds are estimates, seconds for the quantization step; those of the targets come on top,
    for each that is written; all with so many `threads` of this machine, as busy as it is now. Sizes are exact.
    sparse_attention, attention_costs: what sparse attention chooses and costs, in words and in numbers; empty for a
    model without `sparse_config`.
    tensors: how many tensors become what, such as {"int4 g128 sym": 35, "bfloat16": 12}. weights: the same one by one.
    """

    source: str
    parameters: int
    method: str | None
    scheme: str | None
    tensors: Mapping[str, int]
    weights: tuple[PlannedWeight, ...]
    targets: tuple[Target, ...]
    peak_memory_bytes: int
    seconds: float
    threads: int
    sparse_attention: Mapping[str, str]
    attention_costs: tuple[AttentionCost, ...]

    @property
    def possible(self) -> bool:
        """Whether every target can be written."""
        return all(target.refusal is None for target in self.targets)

    @property
    def best(self) -> tuple[Recommendation, ...]:
        """The smallest and the fastest of the targets in every engine that takes one."""
        return recommended(self.targets)

    @property
    def disk_bytes(self) -> int:
        """Space that all targets need together."""
        return sum(target.size or 0 for target in self.targets)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        best = [asdict(one) for one in self.best]
        tensors = [{"type": kind, "count": count} for kind, count in self.tensors.items()]
        return {
            **asdict(self),
            "tensors": tensors,
            "best": best,
            "possible": self.possible,
            "disk_bytes": self.disk_bytes,
        }


def plan(
    model: str | Path | Checkpoint,
    targets: Sequence[str | tuple[str, ExportOptions]],
    options: QuantizeOptions | None = None,
    *,
    threads: int = 1,
) -> Plan:
    """Plan writing a model as each of `targets`, quantized beforehand where there are `options` for it.

    Args:
        model: a folder, a single-file artifact, or an open checkpoint. Headers are read, weights are not.
        targets: containers, "FORMAT", "FORMAT:TYPE" or "FORMAT:TYPE:BITS", or what `parse_target` makes of these.
        options: how to quantize; None = not at all.
        threads: that will be used.

    Raises:
        BadOption: an unknown method or container, or a recipe that does not fit the model.
        UnsupportedSpec: a weight that the scheme cannot divide into groups.
    """
    checkpoint = registry.opened(model)
    check_dense(checkpoint, "plan artifacts of")
    result, method, scheme, known = checkpoint, None, None, about(checkpoint)
    pace, seconds, memory, methods = measured_pace(threads), 0.0, 0, {}
    if options is not None:
        decisions = decided(checkpoint, options)
        method, scheme = decisions.method, decisions.scheme
        methods = {name: one.name for name, one in decisions.methods.items()}
        known = begun(checkpoint, method.name, decisions.methods)
        seconds = run_seconds(checkpoint, decisions.methods, options, pace)
        memory = run_memory(checkpoint.spec, decisions.methods.values(), options, threads=threads)
        result = planned(checkpoint, decisions.weights.assignments)
        result = replace(result, notes=(*result.notes, *decisions.weights.notes))
    weights = tuple(
        PlannedWeight(name=name, shape=weight.shape, type=_type(weight), method=methods.get(name))
        for name, weight in result.weights.items()
    )
    written = [parse_target(target) if isinstance(target, str) else target for target in targets]
    found = tuple(_target(result, known, pace, *target) for target in written)
    return Plan(
        source=checkpoint.path.name,
        parameters=sum(weight.size for weight in checkpoint.weights.values()),
        method=method.name if method is not None else None,
        scheme=str(scheme) if scheme is not None else None,
        tensors=dict(Counter(weight.type for weight in weights)),
        weights=weights,
        targets=found,
        peak_memory_bytes=max([memory, *(target.memory or 0 for target in found)]),
        seconds=seconds,
        threads=threads,
        sparse_attention=sparse_facts(checkpoint.spec),
        attention_costs=attention_costs(checkpoint.spec),
    )


def _target(checkpoint: Checkpoint, known: About, pace: Pace, name: str, options: ExportOptions) -> Target:
    exporter = registry.exporter(name)
    try:
        artifact = exporter.prepare(with_head(checkpoint, known, name), options)
        artifact = with_card(artifact, checkpoint, known)
    except (UnsupportedSpec, MissingDependency) as refusal:
        return Target(
            format=name,
            type=options.type or ONLY_TYPE,
            arch=options.arch,
            bits=options.bits,
            size=None,
            bits_per_weight=None,
            engines=(),
            refusal=str(refusal),
            hint=refusal.hint,
        )
    arch = str(artifact.options.get("arch", options.arch))  # some containers fold where their engine asks for it
    source = with_architecture(checkpoint, arch)
    parameters = sum(weight.size for weight in source.weights.values())
    found = verdicts(as_written(source, artifact), target=options.target)
    engines = taking(name, found)
    return Target(
        format=name,
        type=str(artifact.options.get("type") or options.type or ONLY_TYPE),
        arch=arch,
        bits=options.bits,
        size=artifact.size,
        bits_per_weight=artifact.size * 8 / parameters,
        seconds=export_seconds(parameters, artifact.work, pace),
        memory=streaming_memory(_most_codes(checkpoint, artifact), artifact.memory),
        engines=engines,
        notes=artifact.notes,
        kernels=found,
        loads_in=loading_line(name, found),
        attention=attention_line(source, artifact, engines, found),
    )


def _most_codes(checkpoint: Checkpoint, artifact: PlannedArtifact) -> int:
    """How many the largest tensor has that is in codes, before or after: of fewer than 16 bits each."""
    before = [weight.size for weight in checkpoint.weights.values() if isinstance(weight, QuantizedView)]
    after = [(math.prod(tensor.shape), tensor.nbytes) for tensor in artifact.tensors]
    return max([0, *before, *(size for size, nbytes in after if 8 * nbytes < 16 * size)])


def _type(weight: Weight) -> str:
    return str(weight.dtype if isinstance(weight, TensorView) else weight.scheme)

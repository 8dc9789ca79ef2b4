"""Which engines load an artifact, written or planned, and what would make the others take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantkit import registry
from quantkit.errors import UnsupportedModel
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import folded
from quantkit.protocols import Kernel, Verdict
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.tensors.widening import widened_weights

FOLD = "--arch llama"
"""The option that folds a native MiniCPM into a plain Llama."""
WIDEN = "export --bits"
"""The option that stores narrow codes in more bits."""
DENSE_TYPES = {*FLOATS, *map(str, FLOATS.values())}
"""What `PlannedTensor.type` says of dense tensors, by user's or by numpy's name."""


def verdicts(model: Checkpoint, *, target: str | None = None) -> tuple[Verdict, ...]:
    """What the kernels of every engine that reads the container `model.format` say to a model; reads no tensor data.

    Args:
        model: as it lies in its container; see `as_written` for one that does not yet.
        target: whose layout it has, where the container has several; None = that of the first.
    """
    target = target or next(iter(registry.exporter(model.format).targets), None)
    found = []
    for kernel in registry.kernels(model.format, target):
        verdict = kernel.verdict(model)
        found.append(verdict if verdict.refusal is None else replace(verdict, mend=_mend(kernel, model)))
    return tuple(found)


def _mend(kernel: Kernel, model: Checkpoint) -> str | None:
    """The options that make a kernel take `model`, None where none does."""
    changes = _changes(model)
    return next((options for options, changed in changes if kernel.verdict(changed).refusal is None), None)


def _changes(model: Checkpoint) -> Iterator[tuple[str, Checkpoint]]:
    """`model` as options make it: folded into a plain Llama, which not every family can be; in wider codes; both."""
    plain = [("", model)]
    with suppress(UnsupportedModel):
        plain.append((FOLD, folded(model)))
    yield from plain[1:]
    for options, changed in plain if model.holds_codes else ():
        for bits in registry.exporter(model.format).widths:
            weights = widened_weights(changed.weights, bits, keeps_ternary=True)
            yield f"{WIDEN} {bits} {options}".strip(), replace(changed, weights=weights)


def loads_in(artifact: str | Path | Checkpoint, *, target: str | None = None) -> str:
    """What loads an artifact, in one line: "loads in: vllm, reference (transformers: needs --arch llama)".

    Args:
        artifact: a folder, a single file, or an open checkpoint.
        target: whose layout it has, where the container has several; None = that of the first.
    """
    model = registry.open_checkpoint(artifact) if isinstance(artifact, (str, Path)) else artifact
    return loading_line(model.format, verdicts(model, target=target))


def taking(container: str, found: Sequence[Verdict]) -> tuple[str, ...]:
    """Engines that load the artifact. One without kernels here takes all that its exporter names it for."""
    asked = {verdict.engine for verdict in found}
    takers = dict.fromkeys(verdict.engine for verdict in found if verdict.refusal is None)
    return (*takers, *(engine for engine in registry.exporter(container).engines if engine not in asked))


def loading_line(container: str, found: Sequence[Verdict]) -> str:
    """Verdicts in one line, see `loads_in`.

    An engine of which only some kernels take the artifact is named by these.
    """
    takers = [_taker(engine, found) for engine in taking(container, found)]
    others = [
        f"{verdict.kernel}: {f'needs {verdict.mend}' if verdict.mend else 'refuses it'}"
        for verdict in found
        if verdict.refusal is not None
    ]
    return f"loads in: {', '.join(takers)}" + (f" ({'; '.join(others)})" if others else "")


def _taker(engine: str, found: Sequence[Verdict]) -> str:
    """The engine, or those of its kernels that take the artifact, with what it must be told."""
    asked = [verdict for verdict in found if verdict.engine == engine]
    takers = [verdict for verdict in asked if verdict.refusal is None]
    settings = dict.fromkeys(verdict.setting for verdict in takers if verdict.setting)
    names = [engine] if takers == asked else [verdict.kernel for verdict in takers]
    return " with ".join((", ".join(names), *settings))


def as_written(model: Checkpoint, planned: PlannedArtifact) -> Checkpoint:
    """`model`, which has the architecture that it will have, as it will lie in the artifact.

    Quantized weights that the container keeps dense are dense, and codes are as wide as it stores them.
    """
    dense = {tensor.name for tensor in planned.tensors if tensor.type in DENSE_TYPES}

    def written(name: str, weight: Weight) -> Weight:
        if not isinstance(weight, QuantizedView):
            return weight
        return _values(weight) if name in dense else planned.stored.get(name, weight)

    weights = {name: written(name, weight) for name, weight in model.weights.items()}
    return replace(model, format=planned.format, weights=weights)


def _values(view: QuantizedView) -> TensorView:
    """A quantized weight as its float32 values."""

    def fetch(start: int, stop: int) -> np.ndarray:
        return view.read().part(slice(start, stop)).dequantized()

    return TensorView(view.name, np.dtype(np.float32), view.shape, fetch)

"""The cells of the conformance matrix: which artifacts are written, from which weights, and who runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.conformance_page import BASELINE, COMPUTED, DENSE, STRICT, Artifact
from quantkit import registry
from quantkit.calibration.samples import CalibrationOptions
from quantkit.errors import UnsupportedSpec
from quantkit.exporters.gguf.mixture.file_types import MIXED
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.protocols import Exporter, ExportOptions
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, Weight
from quantkit.verification.engines import ORACLE, runs
from tests.support.runs import quantized

GRIDS = {
    "int4 sym": AffineGroups(bits=4, group_size=128),
    "int4 asym": AffineGroups(bits=4, group_size=128, symmetric=False),
}
NEGATIVE = ", negative scales"
ARCHITECTURES = ("native", "llama")
WIDER = (*FLOATS, "q8_0", "q5_0", "q5_1")
"""Types that hold 4-bit codes in more than 4 bits."""
NARROW = ("tq2_0", "tq1_0", "q2_0")
"""Types that hold codes of two bits, and dense weights only where they are of that kind."""
LEFT_OUT = (*NARROW, *MIXED)
"""Those, and llama.cpp's mixtures: tests hold their bytes to ggml's own, and the engine to the reference."""


def sources(model: Checkpoint, method: str) -> dict[str, Checkpoint]:
    """The models that artifacts are written from, quantized ones in memory: every container gets the same codes."""
    found = {DENSE: model}
    for name, grid in GRIDS.items():
        run = quantized(model, grid, method, calibration=CalibrationOptions())
        found[name] = in_memory(run.checkpoint)
        found[name + NEGATIVE] = mirrored(found[name])
    return found


def in_memory(model: Checkpoint) -> Checkpoint:
    """`model` with every quantized weight computed, once."""
    weights = {
        name: view_of(name, weight.read()) if isinstance(weight, QuantizedView) else weight
        for name, weight in model.weights.items()
    }
    return replace(model, weights=weights)


def view_of(name: str, tensor: QuantizedTensor) -> QuantizedView:
    """A view of a tensor that is in memory."""
    return QuantizedView(name, tensor.shape, tensor.scheme, lambda: tensor)


def mirrored(model: Checkpoint) -> Checkpoint:
    """The same weights, half of the groups written with a negative scale: s (q - z) = -s (q' - z')."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedView):
            weights[name] = view_of(name, mirrored_tensor(weight.read()))
    return replace(model, weights=weights)


def mirrored_tensor(tensor: QuantizedTensor) -> QuantizedTensor:
    """q' = 2 z - q where the zero point z is fixed, which code 0 has no room for; else q' = 15 - q, z' = 15 - z."""
    spec, (rows, groups) = tensor.scheme, tensor.scale.shape
    codes, zero = tensor.codes.reshape(rows, groups, -1), tensor.zero[:, :, None]
    top = 2 * spec.midpoint if spec.symmetric else spec.levels - 1
    chosen = np.add.outer(np.arange(rows), np.arange(groups))[:, :, None] % 2 == 1
    if spec.symmetric:
        chosen &= codes.min(axis=-1, keepdims=True) > 0
    turned = QuantizedTensor(
        spec,
        np.where(chosen, top - codes.astype(int), codes).astype(np.uint8).reshape(tensor.codes.shape),
        {
            "scale": np.where(chosen[:, :, 0], -tensor.scale, tensor.scale),
            "zero": np.where(chosen, top - zero.astype(int), zero).astype(np.uint8)[:, :, 0],
        },
    )
    assert (turned.scale < 0).any()
    assert np.array_equal(turned.dequantized(), tensor.dequantized())
    return turned


def matrix(models: Mapping[str, Checkpoint]) -> Iterator[tuple[Artifact, PlannedArtifact | None]]:
    """Every cell with its plan; None where the container does not hold such weights."""
    for container in registry.names("exporters"):
        exporter = registry.exporter(container)
        for weights, model in models.items():
            for options in choices(exporter, weights):
                artifact = Artifact(container=container, options=options, weights=weights)
                yield artifact, planned(exporter, model, artifact)


def choices(exporter: Exporter, weights: str) -> Iterator[ExportOptions]:
    """Types, targets and architectures to try, less those that say nothing new: types wider or narrower than the codes
    with quantized weights, and folded what quantizes by itself or has mirrored scales.

    A container that carries codes whatever its type, which is that of the other weights, has them in one artifact.
    """
    types = [type_ for type_ in exporter.types if type_ not in LEFT_OUT] or [None]
    if weights != DENSE and exporter.widths and all(type_ in WIDER for type_ in types):
        types = [None]
    for type_ in types:
        for target in exporter.targets or (None,):
            for arch in ARCHITECTURES:
                folded_again = weights.endswith(NEGATIVE) or (weights == DENSE and type_ not in FLOATS)
                if (weights == DENSE or type_ not in WIDER) and not (folded_again and arch != "native"):
                    yield ExportOptions(type=type_, target=target, arch=arch)


def planned(exporter: Exporter, model: Checkpoint, artifact: Artifact) -> PlannedArtifact | None:
    """The plan, or None when the container refuses."""
    try:
        return exporter.prepare(model, artifact.options)
    except UnsupportedSpec:
        return None


def cells(artifact: Artifact, checkpoint: Checkpoint) -> list[tuple[str, Artifact]]:
    """The rows of an artifact, by engine: every engine that takes it, installed or not; the reference if none does.

    The strict engine computes every dense type in float32, so one of them is enough, and it computes that in float16,
    too, for the other rows to be compared with.
    """
    names = [name for name in registry.names("runtimes") if name != ORACLE]
    taking = [name for name in names if runs(registry.runtime(name), checkpoint)] or [ORACLE]
    if artifact.weights != DENSE or STRICT not in taking:
        return [(engine, artifact) for engine in taking]
    if artifact.options.type != BASELINE:
        return [(engine, artifact) for engine in taking if engine != STRICT]
    return [*((engine, artifact) for engine in taking), (STRICT, replace(artifact, weights=COMPUTED))]

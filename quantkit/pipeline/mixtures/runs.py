"""Whole jobs to a size: `export_to_size` for containers with types of their own, `quantize_to_size` for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from quantkit import registry
from quantkit.artifacts.publishing import Published, clean_up, preflight, publish
from quantkit.calibration.compute import Compute
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.pipeline.card.planned import with_card
from quantkit.pipeline.mixtures.grids import Grids, with_choice
from quantkit.pipeline.mixtures.mixture import Chosen, Groups, sizes
from quantkit.pipeline.mixtures.search import Search
from quantkit.pipeline.mixtures.size import TargetSize
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planned_model import decided, planned
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recipe import Assignment
from quantkit.pipeline.runs import AS_IT_IS, DEFAULTS, INTERMEDIATE, ONE_THREAD, planned_folder, solving, written
from quantkit.progress import Progress
from quantkit.protocols import Exporter, ExportOptions
from quantkit.tensors.block_options import CALIBRATED, BlockOptions, Candidates


@runtime_checkable
class Choosing(Protocol):
    """An exporter that has several types for a weight, and can be told which one each of them becomes."""

    def candidates(self, checkpoint: Checkpoint, options: ExportOptions, types: Sequence[str]) -> Candidates:
        """What every weight of a dense model may become; of `types` alone, where there are any."""
        ...

    def choosing(self, checkpoint: Checkpoint, options: ExportOptions, chosen: Mapping[str, str]) -> ExportOptions:
        """The options that give every weight the type that was chosen for it."""
        ...


@dataclass(frozen=True, slots=True)
class _Typed:
    """A dense model, folded as it will be, in a container that has several types for a weight."""

    exporter: Exporter
    choosing: Choosing
    source: Checkpoint
    dense: Checkpoint
    options: ExportOptions
    candidates: Candidates

    @classmethod
    def of(
        cls, container: str, source: Checkpoint, dense: Checkpoint, options: ExportOptions, types: Sequence[str]
    ) -> _Typed:
        """Raises `BadOption` for a container without such types."""
        exporter = registry.exporter(container)
        if not isinstance(exporter, Choosing):
            hint = f"quantize --target-bpw N --target-format {container} chooses bits per layer; export the result"
            raise BadOption(f"{container} has no types to choose from", hint=hint)
        native = replace(options, arch="native")
        found = exporter.candidates(dense, native, types)
        return cls(exporter, exporter, source, dense, native, found)

    @property
    def solved(self) -> bool:
        """Whether a solver chooses the codes."""
        return (self.options.blocks or BlockOptions()).algorithm == CALIBRATED

    @property
    def groups(self) -> Groups:
        """Every weight is of a type of its own."""
        return [(name,) for name in self.candidates]

    def options_of(self, chosen: Chosen) -> ExportOptions:
        """What asks the exporter for a choice."""
        return self.choosing.choosing(self.dense, self.options, {name: one.type for name, one in chosen.items()})

    def plan(self, chosen: Chosen) -> PlannedArtifact:
        """The files with a choice."""
        coded = {name: Assignment(one.scheme, "") for name, one in chosen.items()} if self.solved else {}
        model = with_source_dtypes(planned(self.dense, coded), self.source)
        return self.exporter.prepare(model, self.options_of(chosen))

    def size(self, chosen: Chosen) -> int:
        """Their bytes."""
        return self.plan(chosen).size


def reachable_sizes(
    container: str,
    model: str | Path | Checkpoint,
    options: ExportOptions = AS_IT_IS,
    quantization: QuantizeOptions | None = None,
) -> tuple[int, int]:
    """Bytes of the smallest and of the largest mixture of a container; reads no weight.

    Args:
        container, model, options: as for `export_to_size`.
        quantization: as for `quantize_to_size`, if that is to choose; else the container's own types are.

    Raises:
        BadOption: a container without types to choose from, and no `quantization`.
    """
    source = registry.opened(model)
    dense = with_architecture(source, options.arch)
    if quantization is None:
        typed = _Typed.of(container, source, dense, options, ())
        return sizes(typed.candidates, typed.groups, typed.size)
    assignments = decided(dense, quantization).weights.assignments
    grids = Grids(dense, container, replace(options, arch="native"), assignments, quantization.recipe)
    return sizes(grids.candidates, grids.groups, grids.size)


def export_to_size(
    format: str,  # noqa: A002 - the field's word
    model: str | Path | Checkpoint,
    out: str | Path,
    size: TargetSize,
    options: ExportOptions = AS_IT_IS,
    *,
    quantization: QuantizeOptions = DEFAULTS,
    types: Sequence[str] = (),
    compute: Compute = ONE_THREAD,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Write a dense model in the types of a container, each tensor in that with which all lose least at a size.

    Every candidate is really made and its loss measured on calibration text (`quantkit.pipeline.mixtures.losses`).

    Args:
        format: an exporter with several types, such as "gguf".
        model, out: as for `export`.
        size: the most that the file may take.
        options: as for `export`; its type is chosen. With the algorithm "calibrated" a solver chooses the codes.
        quantization: method, calibration and the rest.
        types: those that may be chosen, in the container's words; none = all that there are.
        compute: threads and device.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far it is.

    Raises:
        BadOption: a container without types to choose from, or a size that no mixture is as small as.
        Others: what `export` and `export_calibrated` raise.
    """
    source = registry.opened(model)
    check_dense(source, "quantize")
    dense = with_architecture(source, options.arch)
    mixable = _Typed.of(format, source, dense, options, types)
    search = Search(dense, _weights(source), size, mixable.candidates, mixable.groups, mixable.size)
    search.check()
    smallest = {name: own[0] for name, own in mixable.candidates.items()}
    _check_output(mixable.plan(smallest), Path(out), source, overwrite=overwrite)
    solved = mixable.solved
    mixture, samples = search.found(quantization.calibration, feedback=solved, compute=compute, progress=progress)
    further = {"mixture": mixture.to_json()}
    if not solved:
        return publish(
            with_card(mixable.plan(mixture.chosen), dense),
            Path(out),
            inputs=source.inputs,
            overwrite=overwrite,
            progress=progress,
            report=lambda: further,
        )
    told = replace(mixable.options_of(mixture.chosen), arch=options.arch)
    run, made = solving(format, source, told, quantization, compute=compute, samples=samples, progress=progress)
    return written(run, made, Path(out), source, overwrite=overwrite, further=further)


def quantize_to_size(
    model: str | Path | Checkpoint,
    out: str | Path,
    size: TargetSize,
    options: QuantizeOptions = DEFAULTS,
    *,
    container: str = INTERMEDIATE,
    container_options: ExportOptions = AS_IT_IS,
    compute: Compute = ONE_THREAD,
    arch: str = "native",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Quantize a dense model, each layer in the bits and groups with which all lose least at a size.

    Layers that the engines of the container make one matrix of (q, k and v; gate and up) are alike, and on grids that
    these engines compute with.

    Args:
        model, out, options: as for `quantize`; layers that rules of the recipe decide are not chosen for.
        size: the most that the files of `container` may take.
        container: what will be written of the result in the end.
        container_options: how.
        compute, arch, overwrite, progress: as for `quantize`.

    Raises:
        BadOption: a size that no mixture is as small as. Others: what `quantize` raises.
    """
    source = registry.opened(model)
    check_dense(source, "quantize")
    dense = with_architecture(source, arch)
    decisions = decided(dense, options, threads=compute.threads)
    if decisions.method.takes_over:
        raise BadOption(f"{decisions.method.name} has codes of its own bits", hint="choose --method gptq or rtn")
    grids = Grids(dense, container, container_options, decisions.weights.assignments, options.recipe)
    search = Search(dense, _weights(source), size, grids.candidates, grids.groups, grids.size)
    search.check()
    usual = planned(dense, decisions.weights.assignments)
    _check_output(registry.exporter(INTERMEDIATE).prepare(usual, AS_IT_IS), Path(out), source, overwrite=overwrite)
    feedback = decisions.method.needs_calibration
    mixture, samples = search.found(options.calibration, feedback=feedback, compute=compute, progress=progress)
    chosen = replace(options, recipe=with_choice(options.recipe, mixture.chosen))
    run = Quantization(dense, chosen, compute=compute, samples=samples, progress=progress)
    further = {"mixture": {"container": container, **mixture.to_json()}}
    return written(run, planned_folder(run, source), Path(out), source, overwrite=overwrite, further=further)


def _weights(source: Checkpoint) -> int:
    return sum(weight.size for weight in source.weights.values())


def _check_output(made: PlannedArtifact, out: Path, source: Checkpoint, *, overwrite: bool) -> None:
    """Refuse what can be refused before anything is measured."""
    clean_up(made, out)
    preflight(made, out, inputs=source.inputs, overwrite=overwrite)

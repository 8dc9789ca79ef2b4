"""Whole jobs, from a model on disk to an artifact on disk: `quantize`, `export`, and both in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from quantkit import registry
from quantkit.artifacts.publishing import Published, clean_up, preflight, publish
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import Samples
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.pipeline.card.planned import with_card, with_head
from quantkit.pipeline.card.source import about
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.progress import Progress
from quantkit.protocols import ExportOptions
from quantkit.tensors.scheme import Scheme

INTERMEDIATE = "compressed-tensors"
"""The container that `quantize` writes."""
DEFAULTS = QuantizeOptions()
ONE_THREAD = Compute()
AS_IT_IS = ExportOptions()


@runtime_checkable
class Mixture(Protocol):
    """An exporter that says what weights become for its types, so that they can be quantized for these at once."""

    def schemes(self, checkpoint: Checkpoint, options: ExportOptions) -> dict[str, Scheme]:
        """The scheme of every weight that is quantized, by its name."""
        ...


def quantize(
    model: str | Path | Checkpoint,
    out: str | Path,
    options: QuantizeOptions = DEFAULTS,
    *,
    compute: Compute = ONE_THREAD,
    arch: str = "native",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Quantize a dense model into a folder that every exporter reads; `loads_in` says which engines load it as it is.

    A run that was stopped, by whatever, goes on after its last finished block when it is asked for again.

    Args:
        model: a folder, a single-file artifact, or an open checkpoint, with 16 or 32-bit weights.
        out: the folder to make.
        options: method, scheme, calibration and the rest.
        compute: threads and device.
        arch: "native", or "llama" to fold MiniCPM's scalars into the weights beforehand.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far the run is, by the work in its stages.

    Returns:
        The artifact; `manifest["report"]` tells how well every layer was quantized.

    Raises:
        What `Quantization`, reading, calibrating and `publish` raise; all are `QuantkitError`s.
    """
    source = registry.opened(model)
    check_dense(source, "quantize")
    run = Quantization(with_architecture(source, arch), options, compute=compute, progress=progress)
    return written(run, planned_folder(run, source), Path(out), source, overwrite=overwrite)


def planned_folder(run: Quantization, source: Checkpoint) -> PlannedArtifact:
    """What `quantize` writes of a run of `source`, its model card in it."""
    planned = registry.exporter(INTERMEDIATE).prepare(with_source_dtypes(run.checkpoint, source), AS_IT_IS)
    return with_card(planned, run.checkpoint, run.about(), run.report)


def export(
    format: str,  # noqa: A002 - the field's word
    source: str | Path | Checkpoint,
    out: str | Path,
    options: ExportOptions = AS_IT_IS,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Write a model as one container. Quantized weights are carried code for code, or refused.

    Args:
        format: an exporter's name, see `quantkit.registry.names("exporters")`.
        source: a folder, a single-file artifact, or an open checkpoint.
        out: the file or folder to make.
        options: type, architecture and target.
        overwrite: replace what lies at `out`, at the very end.
        progress: told of bytes written.

    Returns:
        The artifact; `manifest["notes"]` says what the user should know.

    Raises:
        UnsupportedSpec: the container cannot hold a weight; names it, and what could.
        What reading and `publish` raise; all are `QuantkitError`s.
    """
    checkpoint = registry.opened(source)
    check_dense(checkpoint, "export")
    known = about(checkpoint)
    planned = registry.exporter(format).prepare(with_head(checkpoint, known, format), options)
    planned = with_card(planned, checkpoint, known)
    if options.blocks is not None and options.blocks.imatrix is not None:
        preflight(planned, Path(out), inputs=(options.blocks.imatrix,), overwrite=overwrite)
    return publish(
        planned,
        Path(out),
        inputs=checkpoint.inputs,
        overwrite=overwrite,
        progress=progress,
    )


def export_calibrated(
    format: str,  # noqa: A002 - the field's word
    model: str | Path | Checkpoint,
    out: str | Path,
    options: ExportOptions,
    quantization: QuantizeOptions = DEFAULTS,
    *,
    compute: Compute = ONE_THREAD,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Quantize a dense model in the types of a container, whatever those ask of each weight, and write it, in one step.

    A run that was stopped, by whatever, goes on after its last finished block when it is asked for again.

    Args:
        format: an exporter that has types of its own, such as "gguf".
        model, out, options: as for `export`; the type says what weights become.
        quantization: method, calibration and the rest; not its scheme and recipe.
        compute: threads and device.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far the run is.

    Raises:
        BadOption: a container without such types. Others: what `quantize` and `export` raise.
    """
    source = registry.opened(model)
    check_dense(source, "quantize")
    run, planned = solving(format, source, options, quantization, compute=compute, progress=progress)
    return written(run, planned, Path(out), source, overwrite=overwrite)


def solving(
    format: str,  # noqa: A002 - the field's word
    source: Checkpoint,
    options: ExportOptions,
    quantization: QuantizeOptions,
    *,
    compute: Compute,
    samples: Samples | None = None,
    progress: Progress | None = None,
) -> tuple[Quantization, PlannedArtifact]:
    """The run of `export_calibrated`, and what it will write; `samples`, if given, are what it calibrates on."""
    exporter = registry.exporter(format)
    if not isinstance(exporter, Mixture):
        raise BadOption(
            f"{format} has no types of its own to calibrate for", hint="quantize first, and export the result"
        )
    dense = with_architecture(source, options.arch)
    schemes = exporter.schemes(dense, replace(options, arch="native"))
    quantization = replace(quantization, schemes=schemes)
    run = Quantization(dense, quantization, compute=compute, samples=samples, progress=progress)
    planned = exporter.prepare(with_source_dtypes(run.checkpoint, source), replace(options, arch="native"))
    return run, with_card(planned, run.checkpoint, run.about(), run.report)


def written(
    run: Quantization,
    planned: PlannedArtifact,
    out: Path,
    source: Checkpoint,
    *,
    overwrite: bool,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> Published:
    """Quantize and write; what an earlier run of the same kind has finished is not done again.

    further: what the report tells beside what `run` does.
    """
    clean_up(planned, out)
    preflight(planned, out, inputs=source.inputs, overwrite=overwrite, journal_size=run.journal_size())
    with run.journal(planned, out, discard=overwrite) as journal:
        run.calibrate()
        done = publish(
            planned,
            out,
            inputs=source.inputs,
            overwrite=overwrite,
            progress=run.writing,
            report=lambda: {**run.report(), **further},
        )
        return done if journal is None else replace(done, resumed=journal.recalled)

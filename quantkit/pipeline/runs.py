"""Whole jobs, from a model on disk to an artifact on disk: `quantize` and `export`."""

from __future__ import annotations

from pathlib import Path

from quantkit import registry
from quantkit.artifacts.publishing import Published, clean_up, preflight, publish
from quantkit.calibration.compute import Compute
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.progress import Progress
from quantkit.protocols import ExportOptions

INTERMEDIATE = "compressed-tensors"
"""The container that `quantize` writes."""
DEFAULTS = QuantizeOptions()
ONE_THREAD = Compute()
AS_IT_IS = ExportOptions()


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
    source = registry.open_checkpoint(model) if isinstance(model, (str, Path)) else model
    run = Quantization(with_architecture(source, arch), options, compute=compute, progress=progress)
    planned = registry.exporter(INTERMEDIATE).prepare(with_source_dtypes(run.checkpoint, source), AS_IT_IS)
    target = Path(out)
    clean_up(planned, target)
    preflight(planned, target, inputs=source.inputs, overwrite=overwrite, journal_size=run.journal_size())
    with run.journal(planned, target):
        run.calibrate()
        return publish(
            planned,
            target,
            inputs=source.inputs,
            overwrite=overwrite,
            progress=run.writing,
            report=run.report,
        )


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
    checkpoint = registry.open_checkpoint(source) if isinstance(source, (str, Path)) else source
    planned = registry.exporter(format).prepare(checkpoint, options)
    return publish(
        planned,
        Path(out),
        inputs=checkpoint.inputs,
        overwrite=overwrite,
        progress=progress,
    )

"""A whole job, from a model on disk to an artifact on disk: `recover`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit import registry
from quantkit.artifacts.publishing import Published, clean_up, preflight, publish
from quantkit.calibration.compute import Compute, check_torch
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_dense
from quantkit.models.folding import with_architecture
from quantkit.pipeline.card.planned import with_card
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.runs import AS_IT_IS, INTERMEDIATE, ONE_THREAD
from quantkit.progress import Progress
from quantkit.training.options import TrainingOptions

if TYPE_CHECKING:
    from quantkit.training.processes import Processes


def recover(
    model: str | Path | Checkpoint,
    out: str | Path,
    options: QuantizeOptions,
    training: TrainingOptions,
    *,
    teacher: str | Path | Checkpoint | None = None,
    compute: Compute = ONE_THREAD,
    arch: str = "native",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Published | None:
    """Quantize a dense model, train it with its codes in the forward pass, and write it as `quantize` does.

    Under torchrun every process calls it alike: the first one quantizes and writes, all train. A run that was stopped,
    by whatever, goes on after what it has saved when it is asked for again.

    Args:
        model: a folder, a single-file artifact, or an open checkpoint, with 16 or 32-bit weights.
        out: the folder to make.
        options: how it is quantized to start from.
        training: how it is trained then, and on which text.
        teacher: a model of the same vocabulary whose predictions are aimed at; None = those of `model`.
        compute: threads and device.
        arch: "native", or "llama" to fold MiniCPM's scalars into the weights beforehand.
        overwrite: replace what lies at `out`, at the very end.
        progress: told how far the run is.

    Returns:
        The artifact; `manifest["report"]["training"]` has the loss curve and what was measured on text held out. None
        in processes that are not the first.

    Raises:
        MissingDependency: torch is not installed.
        TrainingDiverged: the loss is no number, or worse than guessing.
        What `quantkit.quantize` raises, and `quantkit.training.sequences.training_text`; all are `QuantkitError`s.
    """
    check_torch("training")
    from quantkit.training.processes import joined_processes  # noqa: PLC0415 - imports torch

    source, taught = (
        registry.open_checkpoint(one) if isinstance(one, (str, Path)) else one for one in (model, teacher)
    )
    assert source is not None
    for one in (source, *((taught,) if taught is not None else ())):
        check_dense(one, "train")
    with joined_processes(compute.device) as processes:
        return _recovered(
            source,
            Path(out),
            options,
            training,
            teacher=taught,
            compute=compute,
            arch=arch,
            overwrite=overwrite,
            processes=processes,
            progress=progress,
        )


def _recovered(
    source: Checkpoint,
    target: Path,
    options: QuantizeOptions,
    training: TrainingOptions,
    *,
    teacher: Checkpoint | None,
    compute: Compute,
    arch: str,
    overwrite: bool,
    processes: Processes,
    progress: Progress | None,
) -> Published | None:
    from quantkit.pipeline.recovery.recovery import Recovery  # noqa: PLC0415 - imports torch

    run = Recovery(
        with_architecture(source, arch),
        options,
        training,
        teacher=teacher,
        stored=source,
        compute=compute,
        processes=processes,
        progress=progress,
    )
    if not processes.is_first:
        run.follow()
        return None
    planned = registry.exporter(INTERMEDIATE).prepare(run.checkpoint, AS_IT_IS)
    planned = with_card(planned, run.checkpoint, run.about())
    inputs = (*source.inputs, *(teacher.inputs if teacher is not None else ()))
    clean_up(planned, target)
    preflight(planned, target, inputs=inputs, overwrite=overwrite, journal_size=run.journal_size())
    with run.journal(planned, target, discard=overwrite) as journal:
        run.calibrate()
        done = publish(
            planned, target, inputs=source.inputs, overwrite=overwrite, progress=run.writing, report=run.report
        )
        return done if journal is None else replace(done, resumed=journal.recalled)

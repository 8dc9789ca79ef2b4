"""A whole training as one call: from a dense model and its quantized start to codes, scales and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from quantkit.artifacts.journal import Journal
from quantkit.calibration.autocast import has_bfloat16_products
from quantkit.calibration.compute import Compute, check_device
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import load_model
from quantkit.models.torch_model import MiniCPM
from quantkit.progress import Progress
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import BFLOAT16, QuantizedView
from quantkit.threads import torch_workers
from quantkit.training.curve import thinned
from quantkit.training.gradients import Gradients
from quantkit.training.options import TrainingOptions
from quantkit.training.processes import ALONE, Processes
from quantkit.training.saved_state import Position
from quantkit.training.schedule import TEACHER_STAGE
from quantkit.training.sequences import TrainingText
from quantkit.training.speed import Speed
from quantkit.training.trainer import Trainer
from quantkit.training.weights.fake_quantization import check_scheme
from quantkit.training.weights.student import Student


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a training has made.

    tensors: codes and scales of every trained matrix, exactly what the last forward pass computed with; those of the
        start where they are closer to the teacher, on sequences held out, than what the training ended with.
    dense: the dense weights that were trained, in the dtype that they came in.
    report: JSON for the manifest.
    """

    tensors: Mapping[str, QuantizedTensor]
    dense: Mapping[str, np.ndarray]
    report: dict[str, Any]


def in_bfloat16(compute: Compute) -> bool:
    """Whether a training computes in bfloat16: as told, else on a GPU, and on a CPU that has instructions for it."""
    if compute.bfloat16 is not None:
        return compute.bfloat16
    return compute.device != "cpu" or has_bfloat16_products()


def check_training(start: Checkpoint, options: TrainingOptions, compute: Compute, processes: Processes = ALONE) -> None:
    """Refuse what can be refused before any work.

    Args:
        start: as for `train`; nothing of it is read.
        options: how it is to be trained.
        compute: with what.
        processes: which of several this is.

    Raises:
        BadOption: no matrix to train, fewer pieces in a step than processes, or a device that is not here.
        UnsupportedSpec: a grid that cannot be trained, with the weight's name.
    """
    if compute.device != "cpu":
        check_device(compute.device, "training", calibrated=True)
    schemes = {name: view.scheme for name, view in start.weights.items() if isinstance(view, QuantizedView)}
    if not schemes:
        raise BadOption(f"{start.path}: no weight of it is quantized, so there is nothing to train")
    for name, scheme in schemes.items():
        check_scheme(name, scheme, options.scales)
    pieces = options.batch // options.micro_batch
    if pieces < processes.count:
        raise BadOption(
            f"{processes.count} processes cannot share {pieces} micro-batches",
            hint="a larger --batch, a smaller --micro-batch, or fewer processes",
        )


def train(
    original: Checkpoint,
    start: Checkpoint,
    text: TrainingText,
    options: TrainingOptions,
    *,
    smoothed: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    compute: Compute = Compute(),  # noqa: B008 - frozen
    processes: Processes = ALONE,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a quantized model until it predicts what it predicted before.

    Args:
        original: the dense model.
        start: the same model with the matrices to train quantized (`AffineGroups`), read once in its order.
        text: what to train on, of `training_text`.
        options: how.
        smoothed: the dense model smoothed as `start` is, where latent weights begin; None = where it is not smoothed.
        teacher: whose predictions are aimed at; None = the original's.
        compute: with what; on the CPU no result depends on the number of threads.
        processes: which of several this is; each needs the same arguments, but only the first one's `start` counts.
        journal: where a killed training finds its state; entered by the caller, and only for the first process.
        progress: told of steps, loss and tokens per second.

    Raises:
        TrainingDiverged: the loss is no number, or worse than guessing.
        BadOption, UnsupportedSpec: see `check_training`.
        NonFiniteValues: NaN or infinity in a weight, with its name.
        NoSpace, WriteFailed: the state cannot be saved.
    """
    check_training(start, options, compute, processes)
    device, bfloat16 = torch.device(compute.device), in_bfloat16(compute)
    threads = compute.threads if compute.device == "cpu" else 1
    with torch_workers(threads) as workers, torch.inference_mode(mode=False), torch.no_grad():
        student = Student(smoothed or original, start, options, device)
        trainer = Trainer(
            options=options,
            original=original,
            start=start,
            student=student,
            teacher=_module(teacher or original, device, bfloat16=bfloat16),
            own_teacher=teacher is None,
            text=text,
            gradients=Gradients(
                workers,
                processes,
                threads=threads,
                micro_batch=options.micro_batch,
                device=device,
                bfloat16=bfloat16,
            ),
            workers=workers,
            processes=processes,
            device=device,
            bfloat16=bfloat16,
            journal=journal,
            speed=Speed(progress, original.spec.num_hidden_layers),
        )
        position = trainer.run()
        report = _report(options, text, position, processes, teacher)
        if report["kept_start"]:
            begun = {name: view.read() for name, view in start.weights.items() if isinstance(view, QuantizedView)}
            return Trained(begun, {}, report)
        return Trained(student.tensors(), student.dense(), report)


def _module(teacher: Checkpoint, device: torch.device, *, bfloat16: bool) -> MiniCPM:
    """In float32, but on a GPU that computes in bfloat16 in that, where the teacher comes in it: half the memory."""
    lossless = all(getattr(weight, "dtype", None) == BFLOAT16 for weight in teacher.weights.values())
    halved = bfloat16 and device.type != "cpu" and lossless
    return load_model(teacher, torch.bfloat16 if halved else torch.float32).to(device)


def _is_worse(measured: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a training that ended with its teacher's predictions is further from them than where it began."""
    begun, ended = measured["start"], measured.get(TEACHER_STAGE)
    return bool(begun and ended and ended["kl"] > begun["kl"])


def _report(
    options: TrainingOptions,
    text: TrainingText,
    position: Position,
    processes: Processes,
    teacher: Checkpoint | None,
) -> dict[str, Any]:
    choices = {name: value for name, value in asdict(options).items() if name != "files"}
    return {
        "options": choices,
        "processes": processes.count,
        "text": text.report(),
        "teacher": teacher.path.name if teacher is not None else None,
        "measured": position.measured,
        "kept_start": _is_worse(position.measured),
        "curve": thinned(position.curve),
    }

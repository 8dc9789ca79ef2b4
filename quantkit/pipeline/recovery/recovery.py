"""A quantization run with a training behind it; it stands where a `Quantization` stands.

The weights that the run makes are where the training starts from. Both happen in `calibrate`; the views of
`checkpoint` hand out what was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit import registry
from quantkit.artifacts.journal import Journal
from quantkit.calibration.compute import Compute
from quantkit.calibration.samples import Samples
from quantkit.files.digest import source_digest
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_source_dtypes
from quantkit.models.spec import BLOCKS
from quantkit.pipeline.card.about import About
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.quantization import Quantization
from quantkit.pipeline.recovery.work import check_training_memory, recovery_work
from quantkit.progress import Progress, StagedWork
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.rounding import round_to_nearest
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from quantkit.training.options import TrainingOptions
from quantkit.training.processes import ALONE, Processes
from quantkit.training.sequences import TrainingText, training_text
from quantkit.training.trained_model import Trained, check_training, in_bfloat16, train

QUANTIZATION, TRAINING, WRITING = "quantization", "training", "writing"
STATE_BYTES = 12
"""Of a saved state, for every trained weight: itself and two moments."""


class Recovery:
    """One run: `checkpoint` is what an exporter takes; `report()`, afterwards, tells how well it went.

    Args:
        source: a dense model, folded where that is wanted.
        options: how it is quantized to start from.
        training: how it is trained then.
        teacher: whose predictions are aimed at; None = those of `source`.
        stored: the model with the dtypes that dense weights are stored in, `source` before it was folded.
        compute: with what.
        samples: the calibration sequences themselves, instead of those that `options.calibration` describes.
        processes: which of several this is. The first one quantizes and publishes; the others `follow`.
        progress: told how far the run is.

    Raises:
        BadOption: a training that takes more memory than this machine has. What `Quantization` and
            `quantkit.training.trained_model.check_training` raise.
    """

    def __init__(
        self,
        source: Checkpoint,
        options: QuantizeOptions,
        training: TrainingOptions,
        *,
        teacher: Checkpoint | None = None,
        stored: Checkpoint | None = None,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        samples: Samples | None = None,
        processes: Processes = ALONE,
        progress: Progress | None = None,
    ) -> None:
        check_training_memory(source, training, compute)
        self._source, self._training, self._teacher = source, training, teacher
        self._compute, self._processes = compute, processes
        self._work = StagedWork(progress, recovery_work(source, options, training))
        quantizing = self._work.stage(QUANTIZATION)
        # A start that is only rounded is made on the CPU, wherever it is trained.
        method = registry.method(options.method) if isinstance(options.method, str) else options.method
        start = compute if method.needs_calibration else replace(compute, device="cpu")
        self._run = Quantization(source, options, compute=start, samples=samples, progress=quantizing)
        self._start = with_source_dtypes(self._run.checkpoint, stored or source)
        check_training(self._start, training, compute, processes)
        self._begun: Checkpoint | None = None
        self._text: TrainingText | None = None
        self._journal: Journal | None = None
        self._trained: Trained | None = None
        self.checkpoint = replace(self._start, weights={name: self._view(w) for name, w in self._start.weights.items()})

    @contextmanager
    def journal(self, planned: PlannedArtifact, out: Path, *, discard: bool = False) -> Iterator[Journal | None]:
        """Read the text; within it finished blocks and the training's state are kept beside `out`.

        discard: whether what a run with other options has kept may be thrown away.

        Raises:
            What `training_text`, `Journal` and `quantkit.pipeline.resumption.run_key` raise.
        """
        facts = json.dumps(self._facts(self._read_text()), sort_keys=True).encode()
        further = hashlib.sha256(facts).digest()
        with self._run.journal(planned, out, further=further, discard=discard) as self._journal:
            yield self._journal

    def calibrate(self) -> None:
        """Quantize and train now, and not when the first view is read.

        Raises:
            What `Quantization.calibrate`, `training_text` and `train` raise.
        """
        if self._trained is None:
            self._run.calibrate()
            self._begun = _read_through(self._start)
            self._trained = self._train(self._begun, self._journal)
            self._measure(self._trained)

    def follow(self) -> None:
        """Train along with the first process, which quantizes meanwhile; nothing comes of it here."""
        self._train(_roughly(self._source, self._start), None)

    def about(self) -> About:
        """What its model card tells: not the figures of the start, which training changes."""
        return replace(self._run.about(), trained=self._training.steps, errors={})

    @property
    def writing(self) -> Progress:
        """What `publish` is to tell."""
        return self._work.stage(WRITING, beside=True)

    def journal_size(self) -> int:
        """Bytes that `journal` will keep, samples and reports aside."""
        sizes = (weight.size for weight in self._start.weights.values())
        return self._run.journal_size() + STATE_BYTES * sum(sizes)

    def report(self) -> dict[str, Any]:
        """JSON for the manifest: what `Quantization.report` says of the start, and what the training has made."""
        assert self._trained is not None
        return {**self._run.report(), "training": self._trained.report}

    def result(self) -> Trained:
        """What was trained, after `calibrate`."""
        self.calibrate()
        assert self._trained is not None
        return self._trained

    def _read_text(self) -> TrainingText:
        self._text = self._text or training_text(self._source, self._teacher or self._source, self._training)
        return self._text

    def _train(self, start: Checkpoint, journal: Journal | None) -> Trained:
        return train(
            self._source,
            start,
            self._read_text(),
            self._training,
            smoothed=self._run.weight_errors.smoothed_source(),
            teacher=self._teacher,
            compute=self._compute,
            processes=self._processes,
            journal=journal,
            progress=self._work.stage(TRAINING),
        )

    def _facts(self, text: TrainingText) -> dict[str, Any]:
        """All that decides what is trained, beside what decides the start."""
        choices = {name: value for name, value in asdict(self._training).items() if name not in ("files", "save_every")}
        teacher = self._teacher
        return {
            "options": choices,
            "text": text.report(),
            "teacher": None if teacher is None else [repr(teacher.spec), source_digest(teacher.inputs)],
            "bfloat16": in_bfloat16(self._compute),
            "processes": self._processes.count,
        }

    def _view(self, weight: Weight) -> Weight:
        """A weight of the start as it is once it was trained."""
        if isinstance(weight, QuantizedView):
            return replace(weight, read=lambda: self.result().tensors[weight.name])
        return replace(weight, fetch=self._fetch(weight))

    def _fetch(self, weight: TensorView) -> Callable[[int, int], np.ndarray]:
        def fetch(start: int, stop: int) -> np.ndarray:
            trained = self.result().dense.get(weight.name)
            begun = (self._begun or self._start).weights[weight.name]
            assert isinstance(begun, TensorView)
            return begun.fetch(start, stop) if trained is None else trained[start:stop]

        return fetch

    def _measure(self, trained: Trained) -> None:
        """Take down how far the weights are from the original's now: norms first, by which they are held against it."""
        for name, values in trained.dense.items():
            if name.startswith(BLOCKS) and values.ndim == 1:
                layer = int(name.removeprefix(BLOCKS).partition(".")[0])
                self._run.weight_errors.smoothed(layer, {}, {name: values})
        for name, tensor in trained.tensors.items():
            self._run.weight_errors.measured(name, tensor)


def _read_through(start: Checkpoint) -> Checkpoint:
    """`start` with all weights of its blocks in memory: a run computes them once, and in order."""
    weights: dict[str, Weight] = {}
    for name, weight in start.weights.items():
        if isinstance(weight, QuantizedView):
            weights[name] = replace(weight, read=_tensor(weight.read()))
        else:
            weights[name] = replace(weight, fetch=_values(weight.read())) if name.startswith(BLOCKS) else weight
    return replace(start, weights=weights)


def _tensor(tensor: QuantizedTensor) -> Callable[[], QuantizedTensor]:
    return lambda: tensor


def _values(values: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: values[start:stop]


def _roughly(source: Checkpoint, start: Checkpoint) -> Checkpoint:
    """`start` with weights rounded to the nearest: all that a process needs whose start does not count."""

    def rounded(name: str, scheme: Scheme) -> Callable[[], QuantizedTensor]:
        weight = source.weights[name]
        assert isinstance(weight, TensorView)
        return lambda: round_to_nearest(weight.read().astype(np.float32), scheme)

    return replace(
        start,
        weights={
            name: replace(weight, read=rounded(name, weight.scheme))
            if isinstance(weight, QuantizedView)
            else source.weights[name]
            for name, weight in start.weights.items()
        },
    )

"""Quantization as a stream: weights come in from a checkpoint and go out as lazily computed `QuantizedView`s.

A `Quantization` computes nothing. Its views do, when an exporter reads them in the order of the model: a method without
calibration quantizes the tensor that is read; one with calibration quantizes a whole block when the block's first
tensor is read and keeps the result until the next block's turn, so that one block is in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.artifacts.journal import Journal
from quantkit.artifacts.output_paths import resolve
from quantkit.calibration.compute import Compute, check_device, check_torch
from quantkit.calibration.samples import Samples, merged
from quantkit.errors import BadOption
from quantkit.files.planned_files import PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.pipeline.card.about import About
from quantkit.pipeline.card.source import begun
from quantkit.pipeline.options import QuantizeOptions
from quantkit.pipeline.planned_model import decided, planned
from quantkit.pipeline.planning.peak_memory import check_memory, generation_peak
from quantkit.pipeline.resumption import SMOOTHING_SCALE, decoded_samples, encoded_samples, kept_bytes, run_key
from quantkit.pipeline.run_work import CALIBRATION_TEXT, LAST_LOOK, WRITING, RunWork
from quantkit.pipeline.source_report import source_reports
from quantkit.pipeline.text_fitness import amount_warnings
from quantkit.pipeline.weight_errors import WeightErrors
from quantkit.progress import Progress, say
from quantkit.protocols import Layer, Method, TensorReport
from quantkit.solver.smoothing import smoothable
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import QuantizedView, TensorView

if TYPE_CHECKING:
    from quantkit.pipeline.blocks.block_stream import BlockStream

OWN_TEXT_STEP, SAMPLES_STEP = "own-text", "samples"


class Quantization:
    """One run: `checkpoint` is what an exporter takes; `report()`, afterwards, tells how well it went.

    Args:
        source: a dense model; `quantkit.models.folding.folded` beforehand for an exact `--arch llama`.
        options: how to quantize it.
        compute: with what.
        samples: the calibration sequences themselves, instead of those that `options.calibration` describes.
        progress: told how far the run is, in units of work (`quantkit.pipeline.run_work`).

    Raises:
        BadOption: an unknown method, a checkpoint that is quantized already, a recipe that does not fit the model, or
            `smooth` without a calibrated layer.
        UnsupportedSpec: a group size that does not divide a layer's columns.
        MissingDependency: the method needs torch, and it is not installed.
    """

    def __init__(
        self,
        source: Checkpoint,
        options: QuantizeOptions,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        samples: Samples | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._options = options
        self._compute = compute
        self._given = samples
        self._progress = progress
        decisions = decided(source, options, threads=compute.threads, progress=progress)
        method = self._method = decisions.method
        self._scheme = decisions.scheme
        plan = planned(source, decisions.weights.assignments)
        plan = replace(plan, notes=(*plan.notes, *decisions.weights.notes))
        self._methods = decisions.methods
        self._exact = decisions.weights.exact
        calibrated = [used.name for used in self._methods.values() if used.needs_calibration]
        self._calibrated = bool(calibrated)
        if calibrated:
            check_torch(f"method {calibrated[0]}")
        if options.smooth and not self._calibrated:
            raise BadOption(
                f"{method.name} is not calibrated, so there is nothing to smooth by", hint="choose --method gptq or awq"
            )
        if compute.device != "cpu":
            check_device(compute.device, method.name, calibrated=self._calibrated)
        text = (samples or options.calibration) if self._calibrated else None
        self._work = RunWork(
            source,
            self._methods,
            text,
            fisher=options.fisher,
            bfloat16=self._calibrated and compute.in_bfloat16(),
            progress=progress,
        )
        if not options.propagate:
            self._work.skip(LAST_LOOK)
        self._reports: dict[str, TensorReport] = {}
        self.weight_errors = WeightErrors(source)
        self._stream: BlockStream | None = None
        self._journal: Journal | None = None
        self.checkpoint = self._with_readers(plan)

    def calibrate(self) -> None:
        """Read or generate the calibration sequences now, and not when the first view is read.

        A bad file is found before any output is begun. Methods without calibration have nothing to do.

        Raises:
            Everything that `quantkit.calibration.sources.calibration_samples` raises; NonFiniteValues: a bad
            embedding; BadOption: sequences that take more memory than this machine has.
        """
        if self._calibrated:
            self._stream = self._stream or self._open_stream()

    @contextmanager
    def journal(
        self, planned: PlannedArtifact, out: Path, *, further: bytes = b"", discard: bool = False
    ) -> Iterator[Journal | None]:
        """Within it finished blocks are kept beside `out`, and those that a killed run has kept are not done again.

        Enter it before `calibrate`, and leave it after publishing. Without calibration nothing is kept, unless there
        are `further` steps: what decides their bytes beside all that decides the codes. What a run with other options
        has kept is refused, unless it is to be discarded.

        Raises:
            What `quantkit.artifacts.journal.Journal` and `quantkit.pipeline.resumption.run_key` raise.
        """
        if not self._calibrated and not further:
            yield None
            return
        key = run_key(self._source, self._wanted(self.checkpoint), self._options, self._compute, given=self._given)
        key = hashlib.sha256(key + further).digest() if further else key
        described = f"{self._method.name} {self._scheme}"
        with Journal(resolve(planned, out), key, described=described, discard=discard) as self._journal:
            if self._journal.found:
                text = f"going on with what a run that was stopped has finished: {self._journal.found} steps"
                say(self._progress, text)
            yield self._journal

    def about(self) -> About:
        """What its model card tells, before it begins."""
        return begun(self._source, self._method.name, self._methods)

    @property
    def writing(self) -> Progress:
        """What `publish` is to tell: its writing is a part of the run's work."""
        return self._work.stage(WRITING)

    def journal_size(self) -> int:
        """Bytes that `journal` will keep, samples and reports aside."""
        if not self._calibrated:
            return 0
        weights = self.checkpoint.weights
        views = [weights[name] for name in self._wanted(self.checkpoint)]
        scales = sum(weights[name].shape[0] * SMOOTHING_SCALE.itemsize for name in self._smoothable(self.checkpoint))
        return scales + sum(kept_bytes(view.shape, view.scheme) for view in views if isinstance(view, QuantizedView))

    def report(self) -> dict[str, Any]:
        """JSON for the manifest: method, scheme, calibration text, and every tensor's error and fallback so far."""
        stream, coverage = self._stream, None
        if stream is not None:
            coverage = source_reports(stream.coverage, self._reports, stream.divergences)
        return {
            "method": self._method.name,
            "scheme": self._scheme.to_json(),
            "recipe": self._options.recipe.to_json(),
            "device": self._compute.device,
            "bfloat16": self._calibrated and self._compute.in_bfloat16(),
            "calibration": coverage,
            "tensors": {name: asdict(report) for name, report in self._reports.items()},
            "weights": self.weight_errors.to_json(),
        }

    @property
    def _weighs(self) -> bool:
        return self._options.fisher and any(method.weighs_outputs for method in self._methods.values())

    def _with_readers(self, plan: Checkpoint) -> Checkpoint:
        weights = dict(plan.weights)
        smoothable = self._smoothable(plan)
        for slot in plan.spec.slots():
            view = weights[slot.name]
            if isinstance(view, QuantizedView):
                weights[slot.name] = replace(view, read=self._reader(view, slot.layer))
            elif slot.layer is not None and slot.name in smoothable:
                weights[slot.name] = replace(view, fetch=self._norm_fetch(view, slot.layer))
        return replace(plan, weights=weights)

    def _reader(self, view: QuantizedView, layer: int | None) -> Callable[[], QuantizedTensor]:
        """Once one weight is calibrated, all those of the blocks come from the stream: later ones see their errors."""
        if not self._calibrated:
            return lambda: self.weight_errors.measured(view.name, self._alone(view))
        if layer is None:
            return lambda: self.weight_errors.measured(view.name, self._outer(view.name))
        return lambda: self.weight_errors.measured(view.name, self._at_block(view.name, layer).tensors[view.name])

    def _norm_fetch(self, view: TensorView, layer: int) -> Callable[[int, int], np.ndarray]:
        """A norm that smoothing may change when its block is quantized."""

        def fetch(start: int, stop: int) -> np.ndarray:
            changed = self._at_block(view.name, layer).norms.get(view.name)
            return view.fetch(start, stop) if changed is None else changed[start:stop]

        return fetch

    def _smoothable(self, plan: Checkpoint) -> set[str]:
        """Names of the norms and matrices whose outputs may be divided."""
        wanted, spec = self._wanted(plan), plan.spec
        return {
            spec.weight_name(layer, role)
            for layer in range(spec.num_hidden_layers)
            for role in smoothable(spec, wanted, layer, self._options.smooth)
        }

    def _outer(self, name: str) -> QuantizedTensor:
        """Embedding or head, whose statistics are there before the blocks are."""
        stream = self._stream = self._stream or self._open_stream()
        tensor, self._reports[name] = stream.outer[name]
        return tensor

    def _alone(self, view: QuantizedView) -> QuantizedTensor:
        """A tensor by itself, in any order."""
        weight = np.asarray(self._source.weights[view.name].read(), np.float32)
        layer = Layer(view.name, weight, view.scheme)
        ((tensor, report),) = self._methods[view.name].quantize([layer], None, threads=self._compute.threads)
        if view.name in self._exact and report.error:
            raise RuntimeError(f"{view.name} is not what was found to be ternary")
        self._reports[view.name] = report
        return tensor

    def _at_block(self, name: str, layer: int) -> BlockStream:
        """The stream at block `layer`, which `name` belongs to: the current one, or a later one after those between."""
        stream = self._stream = self._stream or self._open_stream()
        while stream.layer < layer:
            self._reports |= stream.advance()
            self.weight_errors.smoothed(stream.layer, stream.scales, stream.norms)
        if stream.layer > layer:
            raise RuntimeError(f"{name} was read after block {stream.layer}; blocks are computed once, in order")
        return stream

    def _open_stream(self) -> BlockStream:
        import torch  # noqa: PLC0415 - heavy, and round-to-nearest does without it

        from quantkit.pipeline.blocks.block_stream import BlockStream  # noqa: PLC0415 - imports torch

        return BlockStream(
            self._source,
            self._wanted(self.checkpoint),
            self._samples(),
            skip_positions=self._options.calibration.skip_positions,
            propagate=self._options.propagate,
            smooth=self._options.smooth,
            fisher=self._options.fisher,
            threads=self._compute.threads,
            device=torch.device(self._compute.device),
            bfloat16=self._compute.in_bfloat16(),
            journal=self._journal,
            work=self._work,
        )

    def _wanted(self, plan: Checkpoint) -> dict[str, tuple[Scheme, Method]]:
        """Scheme and method of every weight that is quantized."""
        weights = plan.weights
        views = [view for name in self._methods if isinstance(view := weights[name], QuantizedView)]
        return {view.name: (view.scheme, self._methods[view.name]) for view in views}

    def _samples(self) -> Samples:
        if self._given is not None:
            samples = self._given
        else:
            samples = self._read_samples()
            coverage = samples.coverage
            check_memory(self._source.spec, coverage.sequences, coverage.tokens, weighs=self._weighs)
        samples = self._judged(samples)
        if self._journal is not None:
            self._journal.keep(SAMPLES_STEP, encoded_samples(samples))
        return samples

    def _judged(self, samples: Samples) -> Samples:
        """`samples` with what is wrong with their amount, which is said at once."""
        weights = self.checkpoint.weights
        widths = {weights[name].shape[1] for name, method in self._methods.items() if method.needs_calibration}
        warnings = (*samples.coverage.warnings, *amount_warnings(samples, widths))
        for warning in warnings:
            say(self._progress, warning, loud=True)
        return replace(samples, coverage=replace(samples.coverage, warnings=warnings))

    def _read_samples(self) -> Samples:
        """Files first: a bad one is found before anything is generated."""
        from quantkit.calibration.sources import file_samples  # noqa: PLC0415 - imports torch

        options = self._options.calibration
        progress = self._work.stage(CALIBRATION_TEXT)
        made = [file_samples(self._source, options, progress=progress)] if options.files else []
        if options.own_text:
            made.append(self._own_samples(progress))
        return merged(made)

    def _own_samples(self, progress: Progress) -> Samples:
        """What an earlier run has kept, or generated now."""
        import torch  # noqa: PLC0415 - heavy, and round-to-nearest does without it

        from quantkit.calibration.sources import own_samples  # noqa: PLC0415 - imports torch

        options, journal = self._options.calibration, self._journal
        kept = journal.recall(OWN_TEXT_STEP) if journal is not None else None
        if kept is not None:
            self._work.skip(CALIBRATION_TEXT)
            return decoded_samples(kept)
        own, compute = options.shares()[-1], self._compute
        writing = generation_peak(self._source.spec, options, threads=compute.threads, bfloat16=compute.in_bfloat16())
        check_memory(self._source.spec, own, own * options.length, weighs=self._weighs, at_least=writing)
        samples = own_samples(
            self._source,
            options,
            threads=self._compute.threads,
            device=torch.device(self._compute.device),
            bfloat16=self._compute.in_bfloat16(),
            progress=progress,
        )
        if journal is not None:
            journal.keep(OWN_TEXT_STEP, encoded_samples(samples))
        return samples

"""Quantization as a stream: weights come in from a checkpoint and go out as lazily computed `QuantizedView`s.

`quantized` computes nothing. Its views do, when an exporter reads them in the order of the model: a method without
calibration quantizes the tensor that is read; one with calibration quantizes a whole block when the block's first
tensor is read and keeps the result until the next block's turn, so that one block is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from quantkit import registry
from quantkit.calibration_text import CalibrationOptions, Samples
from quantkit.checkpoint import Checkpoint
from quantkit.errors import BadOption, MissingDependency, QuantkitError
from quantkit.family import LINEAR_ROLES
from quantkit.protocols import Method, TensorReport
from quantkit.quantized import QuantizedTensor
from quantkit.spec import QuantSpec
from quantkit.tensor import QuantizedView

if TYPE_CHECKING:
    from quantkit.block_stream import BlockStream

SKIP_POSITIONS = 4
"""The first tokens attract attention from everywhere and carry activations hundreds of times the usual size."""

Progress = Callable[[int, int], None]
"""progress(done, total): tokens of calibration text generated; called now and then, maybe from another thread."""


def planned(checkpoint: Checkpoint, spec: QuantSpec) -> Checkpoint:
    """`checkpoint` as it will be once its linear layers are quantized with `spec`; their views cannot be read.

    Raises:
        BadOption: a linear layer is quantized already.
        UnsupportedSpec: a group size that does not divide a layer's columns, with the layer's name.
    """
    views: dict[str, QuantizedView] = {}
    for slot in checkpoint.spec.slots():
        if slot.role in LINEAR_ROLES:
            weight = checkpoint.weights[slot.name]
            if isinstance(weight, QuantizedView):
                raise BadOption(
                    f"{slot.name} is quantized already ({weight.spec})",
                    hint="quantize the original checkpoint, or export this one as it is",
                )
            rows, cols = weight.shape
            spec.groups(cols, name=slot.name)
            views[slot.name] = QuantizedView(slot.name, (rows, cols), spec, _unreadable)
    return replace(checkpoint, weights={**checkpoint.weights, **views})


def _unreadable() -> NoReturn:
    raise RuntimeError("a planned weight has no values")


def quantized(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    method_name: str,
    *,
    calibration: CalibrationOptions | Samples | None = None,
    skip_positions: int = SKIP_POSITIONS,
    propagate: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> Quantization:
    """Set up the quantization of every linear layer; the work is done when the result's views are read.

    Args:
        checkpoint: a dense model; `quantkit.fold.folded` beforehand for an exact `--arch llama`.
        spec: the grid of every linear layer.
        method_name: see `quantkit.registry.names("methods")`.
        calibration: what to calibrate on, or the sequences themselves; None = the defaults of `CalibrationOptions`.
        skip_positions: tokens at the start of every sequence that stay out of the statistics.
        propagate: whether each layer makes up for what the layers before it lost.
        threads: how many to use; the result does not depend on it.
        progress: told how far the generation of calibration text is.

    Raises:
        BadOption: an unknown method, or a checkpoint that is quantized already.
        UnsupportedSpec: a group size that does not divide a layer's columns.
        MissingDependency: the method needs torch, and it is not installed.
    """
    try:
        method = registry.method(method_name)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"method {method_name} needs {error.name}, which is not installed", hint="pip install 'quantkit[torch]'"
        ) from None
    return Quantization(
        checkpoint,
        spec,
        method,
        calibration=calibration or CalibrationOptions(),
        skip_positions=skip_positions,
        propagate=propagate,
        threads=threads,
        progress=progress,
    )


class Quantization:
    """One run: `checkpoint` is what an exporter takes; `report()`, afterwards, tells how well it went."""

    def __init__(
        self,
        source: Checkpoint,
        spec: QuantSpec,
        method: Method,
        *,
        calibration: CalibrationOptions | Samples,
        skip_positions: int = SKIP_POSITIONS,
        propagate: bool = True,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._spec = spec
        self._method = method
        self._calibration = calibration
        self._skip_positions = skip_positions
        self._propagate = propagate
        self._threads = threads
        self._progress = progress
        self._reports: dict[str, TensorReport] = {}
        self._stream: BlockStream | None = None
        self.checkpoint = self._with_readers(planned(source, spec))

    def calibrate(self) -> None:
        """Read or generate the calibration sequences now, and not when the first view is read.

        A bad file is found before any output is begun. Methods without calibration have nothing to do.

        Raises:
            Everything that `quantkit.calibration.calibration_samples` raises; NonFiniteValues: a bad embedding.
        """
        if self._method.needs_calibration:
            self._stream = self._stream or self._open_stream()

    def report(self) -> dict[str, Any]:
        """JSON for the manifest: method, spec, calibration coverage, and every tensor's error and fallback so far."""
        coverage = self._stream.coverage.to_json() if self._stream is not None else None
        return {
            "method": self._method.name,
            "spec": self._spec.to_json(),
            "calibration": coverage,
            "tensors": {name: asdict(report) for name, report in self._reports.items()},
        }

    def _with_readers(self, plan: Checkpoint) -> Checkpoint:
        weights = dict(plan.weights)
        for slot in plan.spec.slots():
            view = weights[slot.name]
            if isinstance(view, QuantizedView) and slot.layer is not None:
                weights[slot.name] = replace(view, read=self._reader(view, slot.layer))
        return replace(plan, weights=weights)

    def _reader(self, view: QuantizedView, layer: int) -> Callable[[], QuantizedTensor]:
        if self._method.needs_calibration:
            return lambda: self._from_stream(view.name, layer)
        return lambda: self._alone(view)

    def _alone(self, view: QuantizedView) -> QuantizedTensor:
        """A tensor by itself, in any order."""
        weight = np.asarray(self._source.weights[view.name].read(), np.float32)
        try:
            tensor, report = self._method.quantize(weight, view.spec, None, threads=self._threads)
        except QuantkitError as error:
            raise type(error)(f"{view.name}: {error}", hint=error.hint) from None
        self._reports[view.name] = report
        return tensor

    def _from_stream(self, name: str, layer: int) -> QuantizedTensor:
        """A tensor of the current block, or of a later one once the blocks between are done."""
        stream = self._stream = self._stream or self._open_stream()
        while stream.layer < layer:
            self._reports |= stream.advance()
        if stream.layer > layer:
            raise RuntimeError(f"{name} was read after block {stream.layer}; blocks are computed once, in order")
        return stream.tensors[name]

    def _open_stream(self) -> BlockStream:
        from quantkit.block_stream import BlockStream  # noqa: PLC0415 - imports torch
        from quantkit.calibration import calibration_samples  # noqa: PLC0415 - imports torch

        samples = self._calibration
        if isinstance(samples, CalibrationOptions):
            samples = calibration_samples(self._source, samples, threads=self._threads, progress=self._progress)
        specs = {name: view.spec for name, view in self.checkpoint.weights.items() if isinstance(view, QuantizedView)}
        return BlockStream(
            self._source,
            specs,
            self._method,
            samples,
            skip_positions=self._skip_positions,
            propagate=self._propagate,
            threads=self._threads,
        )

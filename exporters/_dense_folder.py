"""A Hugging Face folder whose weights are all dense: every one in one float dtype, or each in that of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption
from quantkit.exporters._hf_config import config_files, native_config, with_dtype
from quantkit.exporters._recorded import measured
from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedTensor, blob
from quantkit.files.safetensors_header import TensorEntry
from quantkit.files.safetensors_writer import TensorUnit, plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.models.spec import EMBEDDING
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.views import QuantizedView, TensorView, Weight

ROUNDED = "largest_rounding"
"""The figure of quantized weights whose values were rounded: of each the largest change of a value, by its size."""


def plan_dense_folder(
    checkpoint: Checkpoint,
    *,
    type_name: str | None,
    arch: str,
    container: str,
    read: Callable[[Path], Checkpoint],
    made_for: str = "pt",
    config_class: bool = True,
    notes: Sequence[str] = (),
) -> PlannedArtifact:
    """Plan the folder: one unit per tensor.

    Args:
        checkpoint: what to write; quantized weights as the values that they stand for.
        type_name: one of `FLOATS`. None = dense sources keep the dtype of each tensor, quantized ones become bf16.
        arch: see `ExportOptions`.
        container: the exporter's name. read: its reader.
        made_for, config_class: see `header_bytes` and `config_files`.
        notes: what the user should know, besides the model's own notes.

    Raises:
        BadOption: an unknown type or architecture.
    """
    if type_name not in (None, *FLOATS):
        raise BadOption(f"{container} has no type {type_name!r}", hint=f"choose one of: {', '.join(FLOATS)}")
    model = with_architecture(checkpoint, arch)
    kind = "bf16" if type_name is None and model.holds_codes else type_name
    if kind is None and model is not checkpoint:
        model = with_source_dtypes(model, checkpoint)
    rounded: dict[str, float] = {}
    entries = [_entry(weight, kind) for weight in model.weights.values()]
    units = [
        TensorUnit(entry.name, (entry,), _producer(weight, entry.dtype, rounded))
        for entry, weight in zip(entries, model.weights.values(), strict=True)
    ]
    embedding = next(entry for entry in entries if entry.name == EMBEDDING)
    config = with_dtype(native_config(model), embedding.dtype)
    return PlannedArtifact(
        format=container,
        folder=True,
        files=(
            *config_files(model.spec, config, config_class=config_class),
            *plan_safetensors(units, made_for=made_for),
            *(blob(name, read_file()) for name, read_file in sorted(model.files.items())),
        ),
        tensors=tuple(PlannedTensor(e.name, _type_name(e.dtype), e.shape, e.nbytes) for e in entries),
        options={"type": kind or _common_type(entries), "arch": arch},
        notes=(*model.notes, *notes),
        measure=measured(model, read),
        figures=lambda: {ROUNDED: rounded} if rounded else {},
    )


def _type_name(dtype: np.dtype) -> str:
    return next(name for name, known in FLOATS.items() if known == dtype)


def _common_type(entries: Sequence[TensorEntry]) -> str:
    dtypes = {entry.dtype for entry in entries}
    return _type_name(dtypes.pop()) if len(dtypes) == 1 else "mixed"


def _entry(weight: Weight, type_name: str | None) -> TensorEntry:
    if type_name is None and isinstance(weight, TensorView):
        return TensorEntry(weight.name, weight.dtype, weight.shape)
    return TensorEntry(weight.name, FLOATS[type_name or "bf16"], weight.shape)


def _producer(weight: Weight, dtype: np.dtype, rounded: dict[str, float]) -> Callable[[], Iterator[Buffer]]:
    """The values of `weight` as `dtype`; what rounding codes to it changes is noted in `rounded`."""

    def produce() -> Iterator[Buffer]:
        position = 0
        for chunk in weight.chunks() if isinstance(weight, TensorView) else weight.dequantized_chunks():
            values = converted(weight.name, chunk, dtype, offset=position)
            if isinstance(weight, QuantizedView) and (change := _largest_change(chunk, values)):
                rounded[weight.name] = max(change, rounded.get(weight.name, 0.0))
            yield values
            position += chunk.size

    return produce


def _largest_change(exact: np.ndarray, rounded: np.ndarray) -> float:
    """The largest difference relative to an element of `exact`, float32."""
    wide = rounded.astype(np.float32)
    changed = wide != exact
    return float(np.max(np.abs(wide[changed] - exact[changed]) / np.abs(exact[changed]), initial=0.0))

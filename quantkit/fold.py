"""Folding: a MiniCPM checkpoint as the plain Llama that computes the same function.

MiniCPM scales embeddings, residual branches and the head's input; all three scalars move into the weights next to
them (`ModelSpec.fold_factor`), and what remains runs in every engine that knows Llama. Dense weights are multiplied
in float32 and stay float32, so that an exporter rounds once. A quantized weight folds into its scales, which are
multiplied in float32 and rounded once to their own dtype: at most half an ulp, see `fold_notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from quantkit.checkpoint import Checkpoint
from quantkit.errors import BadOption, NonFiniteValues, ValueOutOfRange
from quantkit.family import TensorSlot
from quantkit.quantized import QuantizedTensor
from quantkit.tensor import QuantizedView, TensorView, Weight

EMBEDDING = "model.embed_tokens.weight"


def with_architecture(checkpoint: Checkpoint, arch: str) -> Checkpoint:
    """`checkpoint` as `ExportOptions.arch` asks: "native" = as it is, "llama" = `folded`; else `BadOption`."""
    if arch == "native":
        return checkpoint
    if arch == "llama":
        return folded(checkpoint)
    raise BadOption(f"unknown architecture {arch!r}", hint="choose native or llama")


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The plain Llama that computes the same function as `checkpoint`; a Llama is returned as it is.

    Views stay lazy. A dense view whose factor is not 1 becomes float32; quantized views keep codes and zeros.
    Tied embeddings are untied when the two ends need different factors.

    Reading a view raises:
        NonFiniteValues: the source weight holds NaN or infinity.
        ValueOutOfRange: a folded weight or scale leaves its dtype's range, or a scale vanishes.
    """
    from quantkit.config import llama_config  # noqa: PLC0415 - it needs this module's result only when called

    if checkpoint.spec.architecture == "llama":
        return checkpoint
    spec = checkpoint.spec.folded()
    weights = {slot.name: _folded_weight(checkpoint, slot) for slot in spec.slots()}
    return replace(checkpoint, config=llama_config(spec, checkpoint.config), spec=spec, weights=weights)


def fold_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What folding `checkpoint` costs, one line for the user; empty when no quantized scale is rounded anew."""
    rounded = [
        slot.name
        for slot in checkpoint.spec.folded().slots()
        if isinstance(_source(checkpoint.weights, slot), QuantizedView)
        and _rounds(checkpoint.spec.fold_factor(slot.role))
    ]
    if not rounded or checkpoint.spec.architecture == "llama":
        return ()
    return (
        f"folding rounds the scales of {len(rounded)} quantized tensors once more, by at most half an ulp; "
        "quantize with --arch llama to fold exactly",
    )


def _rounds(factor: float) -> bool:
    """Whether a product with `factor` needs more significant bits than the other operand: not for powers of two."""
    return bool(np.frexp(factor)[0] != 0.5)


def _source(weights: Mapping[str, Weight], slot: TensorSlot) -> Weight:
    """The weight that `slot` of the folded model is made of: a tied head reads the embedding."""
    return weights[slot.name] if slot.name in weights else weights[EMBEDDING]


def _folded_weight(checkpoint: Checkpoint, slot: TensorSlot) -> Weight:
    source = _source(checkpoint.weights, slot)
    factor = checkpoint.spec.fold_factor(slot.role)
    if factor == 1.0:
        return replace(source, name=slot.name)
    if isinstance(source, QuantizedView):
        return replace(source, name=slot.name, read=_scaled_read(source, slot.name, factor))
    return TensorView(slot.name, np.dtype(np.float32), source.shape, _scaled_fetch(source, slot.name, factor))


def _scaled_fetch(view: TensorView, name: str, factor: float) -> Callable[[int, int], np.ndarray]:
    def fetch(start: int, stop: int) -> np.ndarray:
        rows = view.fetch(start, stop)
        with np.errstate(over="ignore"):
            product: np.ndarray = np.multiply(rows, np.float32(factor), dtype=np.float32)
        if not np.isfinite(product).all():
            if not np.isfinite(rows.astype(np.float32)).all():
                raise NonFiniteValues(f"{name}: the weight holds NaN or infinity")
            raise ValueOutOfRange(f"{name}: a weight times {factor:g} exceeds float32")
        return product

    return fetch


def _scaled_read(view: QuantizedView, name: str, factor: float) -> Callable[[], QuantizedTensor]:
    def read() -> QuantizedTensor:
        tensor = view.read()
        with np.errstate(over="ignore", under="ignore"):
            scale = (tensor.scale.astype(np.float32) * np.float32(factor)).astype(tensor.scale.dtype)
        lost = ~np.isfinite(scale.astype(np.float32)) | ((scale == 0) & (tensor.scale != 0))
        if lost.any():
            row, group = np.argwhere(lost)[0]
            raise ValueOutOfRange(
                f"{name}: scale {float(tensor.scale[row, group]):g} of row {row}, group {group} "
                f"times {factor:g} does not fit {tensor.spec.scale_dtype}",
                hint="fold before quantizing: quantkit quantize --arch llama",
            )
        return replace(tensor, scale=scale)

    return read

"""Folding: a MiniCPM checkpoint as the plain Llama that computes the same function.

MiniCPM scales embeddings, residual branches and the head's input; all three scalars move into the weights
(`ModelSpec.fold_factor`), and what remains runs in every engine that knows Llama. Layers and head are multiplied by
powers of two, so that codes stay and scales keep every significant bit (unless one falls below the smallest normal
number of its dtype); the rest goes into the embedding and the norms. Dense weights are multiplied in float32 and stay
float32, so that an exporter rounds once; `with_source_dtypes` brings them back to the size that they had. A quantized
embedding folds into its scales, which are multiplied in float32 and rounded once to their own dtype: at most half an
ulp, and a note says so. `docs/decisions/0007-folding-by-powers-of-two.md` tells why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from quantkit.errors import UnsupportedSpec, ValueOutOfRange, chosen
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import EMBEDDING, TensorSlot, architecture
from quantkit.tensors.cast import check_range, converted
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import QuantizedView, TensorView, Weight

FLOAT32 = np.dtype(np.float32)
ARCHITECTURES = ("native", "llama")
"""What `ExportOptions.arch` can be."""
NOT_CARRIED = "folded into a Llama, which has no sparse attention: sparse_config is left out"


def with_architecture(checkpoint: Checkpoint, arch: str) -> Checkpoint:
    """`checkpoint` as `ExportOptions.arch` asks: "native" = as it is, "llama" = `folded`; else `BadOption`."""
    arch = chosen(arch, ARCHITECTURES, problem=f"unknown architecture {arch[:80]!r}")
    return folded(checkpoint) if arch == "llama" else checkpoint


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The plain Llama that computes the same function as `checkpoint`; a Llama is returned as it is.

    Views stay lazy. A dense view whose factor is not 1 becomes float32; quantized views keep codes and zeros.
    Tied embeddings are untied when the two ends need different factors.

    Reading a view raises:
        NonFiniteValues: the source weight holds NaN or infinity.
        ValueOutOfRange: a folded weight or scale leaves its dtype's range, or a scale vanishes.
    """
    if checkpoint.spec.architecture == "llama":
        return checkpoint
    spec = checkpoint.spec.folded()
    return replace(
        checkpoint,
        config=architecture(spec.architecture).config(spec, checkpoint.config),
        spec=spec,
        weights={slot.name: _folded_weight(checkpoint, slot) for slot in spec.slots()},
        notes=(*checkpoint.notes, *_notes(checkpoint)),
    )


def with_source_dtypes(checkpoint: Checkpoint, source: Checkpoint) -> Checkpoint:
    """`checkpoint`, which was folded from `source`, with dense weights rounded back to the dtypes of `source`.

    Reading a view raises `ValueOutOfRange` when a folded weight exceeds that dtype.
    """
    weights = {
        slot.name: _rounded(checkpoint.weights[slot.name], _source(source.weights, slot))
        for slot in checkpoint.spec.slots()
    }
    return replace(checkpoint, weights=weights)


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What folding costs, a line each for the user; empty when no scale is rounded anew, and nothing is left out."""
    lost = (NOT_CARRIED,) if checkpoint.spec.sparse is not None else ()
    rounded = [
        slot.name
        for slot in checkpoint.spec.folded().slots()
        if isinstance(_source(checkpoint.weights, slot), QuantizedView)
        and _rounds(checkpoint.spec.fold_factor(slot.role))
    ]
    if not rounded:
        return lost
    return (
        *lost,
        f"folding rounds the scales of {len(rounded)} quantized tensors once more, by at most half an ulp; "
        "quantize with --arch llama to fold exactly",
    )


def _rounds(factor: float) -> bool:
    """Whether a product with `factor` can need more significant bits than the other operand: not for powers of two."""
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
    return TensorView(slot.name, FLOAT32, source.shape, _scaled_fetch(source, slot.name, factor))


def _rounded(weight: Weight, source: Weight) -> Weight:
    if isinstance(weight, QuantizedView) or isinstance(source, QuantizedView) or weight.dtype == source.dtype:
        return weight
    name, dtype, fetch_wide = weight.name, source.dtype, weight.fetch
    row_size = weight.size // max(1, weight.shape[0])

    def fetch(start: int, stop: int) -> np.ndarray:
        return converted(name, fetch_wide(start, stop), dtype, offset=start * row_size)

    return TensorView(name, dtype, weight.shape, fetch)


def _scaled_fetch(view: TensorView, name: str, factor: float) -> Callable[[int, int], np.ndarray]:
    row_size = view.size // max(1, view.shape[0])

    def fetch(start: int, stop: int) -> np.ndarray:
        rows = view.fetch(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            product: np.ndarray = np.multiply(rows, np.float32(factor), dtype=np.float32)
        if not np.isfinite(product).all():
            check_range(name, rows, FLOAT32, offset=start * row_size)
            raise ValueOutOfRange(f"{name}: a weight times {factor:g} exceeds float32")
        return product

    return fetch


def _scaled_read(view: QuantizedView, name: str, factor: float) -> Callable[[], QuantizedTensor]:
    def read() -> QuantizedTensor:
        tensor = view.read()
        arrays = {key: tensor.arrays[key] for key in tensor.scheme.factors if key in tensor.arrays}
        scaled = {key: _scaled_array(values, f"{name}: {key}", factor) for key, values in arrays.items()}
        try:
            return replace(tensor, arrays={**tensor.arrays, **scaled})
        except UnsupportedSpec as error:  # powers of two times what is none
            raise UnsupportedSpec(f"{name}: times {factor:g}, {error}", hint="choose --arch native") from None

    return read


def _scaled_array(values: np.ndarray, where: str, factor: float) -> np.ndarray:
    """Scales or offsets (rows, groups) times `factor`, in their own dtype."""
    with np.errstate(over="ignore", under="ignore"):
        scaled: np.ndarray = (values.astype(np.float32) * np.float32(factor)).astype(values.dtype)
    lost = ~np.isfinite(scaled.astype(np.float32)) | ((scaled == 0) & (values != 0))
    if lost.any():
        row, group = np.argwhere(lost)[0]
        raise ValueOutOfRange(
            f"{where} {float(values[row, group]):g} of row {row}, group {group} times {factor:g} does not fit "
            f"{values.dtype}",
            hint="fold before quantizing: quantkit quantize --arch llama",
        )
    return scaled

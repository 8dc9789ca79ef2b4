"""The tensors of a model as they lie in a GGUF file: names, order of rows, and codes carried into blocks and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import InconsistentCheckpoint, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BLOCK, BlockType
from quantkit.exporters.gguf.file import GGUFFile
from quantkit.models.spec import ModelSpec, Role, TensorSlot
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.quant_spec import SCALE_DTYPES, QuantSpec
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.views import CHUNK_ELEMENTS, QuantizedView, TensorView, Weight

PLAIN: dict[BlockType, np.dtype] = {
    blocks.F32: FLOATS["f32"],
    blocks.F16: FLOATS["f16"],
    blocks.BF16: FLOATS["bf16"],
}
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

_OUTER_NAMES = {
    Role.EMBED: "token_embd.weight",
    Role.FINAL_NORM: "output_norm.weight",
    Role.LM_HEAD: "output.weight",
}
_LAYER_NAMES = {
    Role.ATTN_NORM: "attn_norm",
    Role.Q: "attn_q",
    Role.K: "attn_k",
    Role.V: "attn_v",
    Role.O: "attn_output",
    Role.MLP_NORM: "ffn_norm",
    Role.GATE: "ffn_gate",
    Role.UP: "ffn_up",
    Role.DOWN: "ffn_down",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the model lies in the file.

    name: GGUF's name. head: rows of one head where those are stored in pairs (queries, keys), else 1. ggml rotates
    neighbouring channels of these architectures, the family rotates channel i with channel i + d/2.
    """

    name: str
    slot: TensorSlot
    head: int

    def to_file(self, rows: np.ndarray) -> np.ndarray:
        """Rows of whole heads in the file's order: 0 .. d-1 becomes 0, d/2, 1, d/2 + 1, ..."""
        return rows if self.head == 1 else _swapped(rows, 2, self.head // 2)

    def to_model(self, rows: np.ndarray) -> np.ndarray:
        """Inverse of `to_file`."""
        return rows if self.head == 1 else _swapped(rows, self.head // 2, 2)


def _swapped(rows: np.ndarray, outer: int, inner: int) -> np.ndarray:
    grid = rows.reshape(-1, outer, inner, rows.shape[1])
    return np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(rows.shape)


def places(spec: ModelSpec) -> tuple[Place, ...]:
    """Every tensor of the model, in the order of the file, which is that of the forward pass."""
    return tuple(
        Place(
            _OUTER_NAMES[slot.role] if slot.layer is None else f"blk.{slot.layer}.{_LAYER_NAMES[slot.role]}.weight",
            slot,
            spec.head_dim if slot.role in (Role.Q, Role.K) else 1,
        )
        for slot in spec.slots()
    )


def holds(block: BlockType, spec: QuantSpec, cols: int) -> bool:
    """Whether blocks of this type hold every tensor of `spec` with `cols` columns, value for value.

    Types with a minimum round scale * zero to float16; the others hold code - zero and are exact.
    """
    if spec.group_width(cols) % BLOCK:
        return False
    if block.offset is None:
        return spec.bits <= block.bits
    lowest, highest = _differences(spec)
    fits: bool = -block.offset <= lowest and highest < 2**block.bits - block.offset
    return fits


def carried_spec(block: BlockType, spec: QuantSpec) -> QuantSpec:
    """What comes back of codes of `spec` from such blocks.

    Types without a minimum store code - zero: of an asymmetric tensor the same weights come back on a symmetric grid.
    """
    if spec.symmetric or block.has_minimum:
        return spec
    return replace(spec, bits=block.bits, symmetric=True)


def _differences(spec: QuantSpec) -> tuple[int, int]:
    """Smallest and largest code - zero."""
    if spec.symmetric:
        return -spec.midpoint, spec.levels - 1 - spec.midpoint
    return 1 - spec.levels, spec.levels - 1


def carried(name: str, block: BlockType, tensor: QuantizedTensor) -> np.ndarray:
    """Codes and scales as blocks, nothing rounded but a minimum: uint8 (rows, bytes).

    Raises:
        UnsupportedSpec: a scale that is not exactly a float16.
        ValueOutOfRange: a minimum beyond float16.
    """
    scale = tensor.scale.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        halves = scale.astype(np.float16)
        minimum = (-scale * tensor.zero).astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scale):
        row, group = np.argwhere(halves.astype(np.float32) != scale)[0]
        raise UnsupportedSpec(
            f"tensor {name!r}: {block.name} holds float16 scales, and {scale[row, group]:g} of row {row} is none "
            f"(it is {tensor.spec.scale_dtype})",
            hint="quantize with float16 scales, or write bf16 or f32",
        )
    repeats = tensor.spec.group_width(tensor.shape[1]) // BLOCK
    if block.offset is None:
        if not np.isfinite(minimum).all():
            raise ValueOutOfRange(f"tensor {name!r}: scale times zero point exceeds float16's 65504")
        return blocks.pack(block, tensor.codes, _repeated(halves, repeats), _repeated(minimum, repeats))
    zero = np.repeat(tensor.zero, repeats * BLOCK, axis=1)
    codes = tensor.codes - zero + np.uint8(block.offset)  # wraps below zero in between; `holds` bounds the sum
    return blocks.pack(block, codes, _repeated(halves, repeats))


def _repeated(values: np.ndarray, repeats: int) -> np.ndarray:
    return np.repeat(values, repeats, axis=1)


def encoded(weight: Weight, place: Place, block: BlockType) -> Iterator[np.ndarray]:
    """The bytes of `weight` as `block`, in runs of whole rows.

    Dense values are converted or quantized; a quantized view is dequantized for plain types, else carried over.
    """
    position = 0
    for part in _dense_runs(weight, place) if isinstance(weight, TensorView) else _quantized_runs(weight, place):
        if isinstance(part, QuantizedTensor) and block not in PLAIN:
            packed = carried(weight.name, block, part)
        else:
            values = part.dequantized() if isinstance(part, QuantizedTensor) else part
            packed = (
                converted(weight.name, values, PLAIN[block], offset=position)
                if block in PLAIN
                else blocks.quantize(weight.name, block, values)
            )
            position += values.size
        yield place.to_file(packed)


def _dense_runs(view: TensorView, place: Place) -> Iterator[np.ndarray]:
    step = _run_length(view.size // view.shape[0], place.head)
    for start in range(0, view.shape[0], step):
        yield view.fetch(start, min(start + step, view.shape[0]))


def _quantized_runs(view: QuantizedView, place: Place) -> Iterator[QuantizedTensor]:
    tensor = view.read()
    step = _run_length(view.shape[1], place.head)
    for start in range(0, view.shape[0], step):
        part = slice(start, start + step)
        yield replace(tensor, codes=tensor.codes[part], scale=tensor.scale[part], zero=tensor.zero[part])


def _run_length(cols: int, head: int) -> int:
    """Rows of about CHUNK_ELEMENTS weights, a multiple of `head`."""
    return max(1, CHUNK_ELEMENTS // (cols * head)) * head


def dense_view(gguf: GGUFFile, place: Place) -> TensorView:
    """A tensor as float values: plain ones in their own dtype, blocks dequantized to float32."""
    block = gguf.tensors[place.name].type
    shape = place.slot.shape

    def fetch(start: int, stop: int) -> np.ndarray:
        first, last = start // place.head * place.head, -(-stop // place.head) * place.head
        raw = place.to_model(gguf.rows(place.name, first, last))[start - first : stop - first]
        if block in PLAIN:
            return np.ascontiguousarray(raw).view(PLAIN[block]).reshape(stop - start, *shape[1:])
        _check_scales(place.name, *blocks.unpack(block, raw)[1:])
        return blocks.dequantize(block, raw)

    return TensorView(place.slot.name, PLAIN.get(block, FLOATS["f32"]), shape, fetch)


def quantized_view(gguf: GGUFFile, place: Place, spec: QuantSpec) -> QuantizedView:
    """A tensor of blocks as codes, scales and zeros of `spec`; reading raises if the blocks are not of that spec."""
    rows, cols = place.slot.shape

    def read() -> QuantizedTensor:
        raw = place.to_model(gguf.rows(place.name, 0, rows))
        return recovered(place.name, gguf.tensors[place.name].type, raw, spec)

    return QuantizedView(place.slot.name, (rows, cols), spec, read)


def recovered(name: str, block: BlockType, raw: np.ndarray, spec: QuantSpec) -> QuantizedTensor:
    """Inverse of `carried`: uint8 (rows, bytes) to the tensor of `spec` that they hold.

    `spec` is symmetric, or the type has a minimum (see `carried_spec`). The zero point of a scale that is 0 is lost.

    Raises:
        NonFiniteValues: an infinite scale. InconsistentCheckpoint: the blocks cannot be of that spec.
    """
    codes, scale, minimum = blocks.unpack(block, raw)
    _check_scales(name, scale, minimum)
    groups = spec.groups(codes.shape[1], name=name)
    scale = _merged(name, scale, groups, spec)
    if minimum is None:
        zero = np.full(scale.shape, spec.midpoint, np.uint8)
        codes -= np.uint8((block.offset or 0) - spec.midpoint)  # below zero it wraps, beyond every code of `spec`
    else:
        zero = _zero_of_minimum(name, scale, _merged(name, minimum, groups, spec), spec)
    if codes.max() >= spec.levels:
        raise _not_of(name, spec, "codes")
    return QuantizedTensor(spec, codes, scale.astype(SCALE_DTYPES[spec.scale_dtype]), zero)


def _merged(name: str, values: np.ndarray, groups: int, spec: QuantSpec) -> np.ndarray:
    """One value per group of blocks that must all have the same."""
    grouped = values.reshape(len(values), groups, -1)
    if (grouped.view(np.uint16) != grouped.view(np.uint16)[:, :, :1]).any():
        raise _not_of(name, spec, "scales")
    return grouped[:, :, 0]


def _zero_of_minimum(name: str, scale: np.ndarray, minimum: np.ndarray, spec: QuantSpec) -> np.ndarray:
    d, m = scale.astype(np.float32), minimum.astype(np.float32)
    nothing = d == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(nothing, spec.midpoint if spec.symmetric else 0, np.rint(-m / d))
    valid = (zero >= 0) & (zero < spec.levels) & ((-d * zero).astype(np.float16) == minimum)
    if not valid.all() or (spec.symmetric and (zero != spec.midpoint).any()):
        raise _not_of(name, spec, "minimums")
    return zero.astype(np.uint8)


def _not_of(name: str, spec: QuantSpec, what: str) -> InconsistentCheckpoint:
    return InconsistentCheckpoint(f"tensor {name!r}: the {what} of its blocks are not those of {spec}")


def _check_scales(name: str, scale: np.ndarray, minimum: np.ndarray | None) -> None:
    for what, values in (("scale", scale), ("minimum", minimum)):
        if values is not None and not np.isfinite(values).all():
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteValues(f"tensor {name!r}: block {index:,} has a {what} that is NaN or infinite")

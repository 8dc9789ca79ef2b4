"""The tensors of a model as they lie in a GGUF file: names, order of rows, and codes carried into blocks and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from quantkit.errors import InconsistentCheckpoint, NonFiniteValues, UnsupportedSpec, ValueOutOfRange
from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BLOCK, BlockType
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.models.spec import ModelSpec, Role, TensorSlot
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES, Scheme
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
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


def holds(block: BlockType, scheme: Scheme, cols: int) -> bool:
    """Whether blocks of this type hold every tensor of `scheme` with `cols` columns, value for value.

    Types with a minimum hold offsets, and of integer zero points the product with the scale, rounded to float16; the
    others hold code - zero and are exact.
    """
    if scheme.group_width(cols) % BLOCK:
        return False
    if block.offset is None:
        return isinstance(scheme, (AffineGroups, OffsetGroups)) and scheme.bits <= block.bits
    if not isinstance(scheme, AffineGroups):
        return False
    lowest, highest = _differences(scheme)
    fits: bool = -block.offset <= lowest and highest < 2**block.bits - block.offset
    return fits


def carried_scheme(block: BlockType, scheme: Scheme) -> AffineGroups | OffsetGroups:
    """What comes back of codes of `scheme` from such blocks, which hold it.

    Types with a minimum give back the offsets that engines compute with. Types without store code - zero: of an
    asymmetric tensor the same weights come back as a symmetric one.
    """
    if block.has_minimum:
        return OffsetGroups(bits=scheme.bits, group_size=scheme.group_size)
    if not isinstance(scheme, AffineGroups):
        raise UnsupportedSpec(f"{block.name} has no offsets, which {scheme} needs")
    return scheme if scheme.symmetric else replace(scheme, bits=block.bits, symmetric=True)


def _differences(scheme: AffineGroups) -> tuple[int, int]:
    """Smallest and largest code - zero."""
    if scheme.symmetric:
        return -scheme.midpoint, scheme.levels - 1 - scheme.midpoint
    return 1 - scheme.levels, scheme.levels - 1


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """Codes and parameters as blocks. packed: uint8 (rows, bytes). moved: by how many steps at most a weight moved."""

    packed: np.ndarray
    moved: float = 0.0


def carried(name: str, block: BlockType, tensor: QuantizedTensor) -> Carried:
    """Codes and scales as they are; a minimum rounded to float16.

    Raises:
        UnsupportedSpec: a scale that is not exactly a float16.
        ValueOutOfRange: a minimum beyond float16.
    """
    scale, offset = tensor.scheme.effective(tensor.arrays)
    with np.errstate(over="ignore", under="ignore"):
        halves = scale.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scale):
        row, group = np.argwhere(halves.astype(np.float32) != scale)[0]
        raise UnsupportedSpec(
            f"tensor {name!r}: {block.name} holds float16 scales, and {scale[row, group]:g} of row {row} is none "
            f"(it is {tensor.scheme.scale_dtype})",
            hint="quantize with float16 scales, or write bf16 or f32",
        )
    repeats = tensor.scheme.group_width(tensor.shape[1]) // BLOCK
    if block.offset is None:
        minimum, moved = _minimum(name, scale, offset)
        return Carried(blocks.pack(block, tensor.codes, _repeated(halves, repeats), _repeated(minimum, repeats)), moved)
    zero = np.repeat(tensor.zero, repeats * BLOCK, axis=1)
    codes = tensor.codes - zero + np.uint8(block.offset)  # wraps below zero in between; `holds` bounds the sum
    return Carried(blocks.pack(block, codes, _repeated(halves, repeats)))


def _minimum(name: str, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, float]:
    """Offsets as float16, and by how many steps that moves the weights of a group at most."""
    with np.errstate(over="ignore", under="ignore"):
        minimum = offset.astype(np.float16)
    if not np.isfinite(minimum).all():
        raise ValueOutOfRange(f"tensor {name!r}: scale times zero point exceeds float16's 65504")
    distance = np.abs(minimum.astype(np.float64) - offset)
    steps = np.divide(distance, np.abs(scale), out=np.zeros_like(distance), where=scale != 0)
    return minimum, float(steps.max(initial=0.0))


def _repeated(values: np.ndarray, repeats: int) -> np.ndarray:
    return np.repeat(values, repeats, axis=1)


def encoded(weight: Weight, place: Place, block: BlockType, moved: dict[str, float]) -> Iterator[np.ndarray]:
    """The bytes of `weight` as `block`, in runs of whole rows.

    Dense values are converted or quantized; a quantized view is dequantized for plain types, else carried over. By how
    many steps that moved a weight at most is noted in `moved`, by the weight's name, unless by none.
    """
    position = 0
    for part in _dense_runs(weight, place) if isinstance(weight, TensorView) else _quantized_runs(weight, place):
        if isinstance(part, QuantizedTensor) and block not in PLAIN:
            made = carried(weight.name, block, part)
            packed = made.packed
            if made.moved:
                moved[weight.name] = max(made.moved, moved.get(weight.name, 0.0))
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
        yield tensor.part(slice(start, start + step))


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


def quantized_view(gguf: GGUFFile, place: Place, scheme: AffineGroups | OffsetGroups) -> QuantizedView:
    """A tensor of blocks as codes and parameters of `scheme`; reading raises if the blocks are not of that scheme."""
    rows, cols = place.slot.shape

    def read() -> QuantizedTensor:
        raw = place.to_model(gguf.rows(place.name, 0, rows))
        return recovered(place.name, gguf.tensors[place.name].type, raw, scheme)

    return QuantizedView(place.slot.name, (rows, cols), scheme, read)


def recovered(name: str, block: BlockType, raw: np.ndarray, scheme: AffineGroups | OffsetGroups) -> QuantizedTensor:
    """Inverse of `carried`: uint8 (rows, bytes) to the tensor of `scheme`, see `carried_scheme`, that they hold.

    Raises:
        NonFiniteValues: an infinite scale. InconsistentCheckpoint: the blocks cannot be of that scheme.
    """
    codes, scale, minimum = blocks.unpack(block, raw)
    _check_scales(name, scale, minimum)
    groups, dtype = scheme.groups(codes.shape[1], name=name), SCALE_DTYPES[scheme.scale_dtype]
    arrays = {"scale": _merged(name, scale, groups, scheme).astype(dtype)}
    if minimum is not None:
        arrays["offset"] = _merged(name, minimum, groups, scheme).astype(dtype)
    elif isinstance(scheme, AffineGroups):
        arrays["zero"] = np.full(arrays["scale"].shape, scheme.midpoint, np.uint8)
        codes -= np.uint8((block.offset or 0) - scheme.midpoint)  # below zero it wraps, beyond every code of `scheme`
    if codes.max() > scheme.span:
        raise _not_of(name, scheme, "codes")
    return QuantizedTensor(scheme, codes, arrays)


def _merged(name: str, values: np.ndarray, groups: int, scheme: Scheme) -> np.ndarray:
    """One value per group of blocks that must all have the same."""
    grouped = values.reshape(len(values), groups, -1)
    if (grouped.view(np.uint16) != grouped.view(np.uint16)[:, :, :1]).any():
        raise _not_of(name, scheme, "scales")
    return grouped[:, :, 0]


def _not_of(name: str, scheme: Scheme, what: str) -> InconsistentCheckpoint:
    return InconsistentCheckpoint(f"tensor {name!r}: the {what} of its blocks are not those of {scheme}")


def _check_scales(name: str, scale: np.ndarray, minimum: np.ndarray | None) -> None:
    for what, values in (("scale", scale), ("minimum", minimum)):
        if values is not None and not np.isfinite(values).all():
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteValues(f"tensor {name!r}: block {index:,} has a {what} that is NaN or infinite")

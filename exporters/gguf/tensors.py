"""The tensors of a model as they lie in a GGUF file: names, order of rows, their bytes, and views that read these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantkit.exporters.gguf import blocks
from quantkit.exporters.gguf.blocks import BlockType
from quantkit.exporters.gguf.carrying import carried, recovered
from quantkit.exporters.gguf.container.file import GGUFFile
from quantkit.exporters.gguf.container.types import padding, tensor_bytes
from quantkit.exporters.gguf.quantizers import quantize
from quantkit.exporters.gguf.searched.dense import SIMPLE_WORK, DenseRows
from quantkit.exporters.gguf.ternary import AS_THEY_STAND, ternary_blocks
from quantkit.exporters.gguf.types.schemes import SCHEMES, packed, unpacked
from quantkit.exporters.gguf.types.values import LAYOUTS
from quantkit.files.planned_files import Buffer, Unit
from quantkit.models.spec import ModelSpec, Role, TensorSlot
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.schemes.offset_groups import OffsetGroups
from quantkit.tensors.views import CHUNK_ELEMENTS, QuantizedView, TensorView, Weight
from quantkit.threads import ordered_map

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
    Role.Q_A: "attn_q_a",
    Role.Q_A_NORM: "attn_q_a_norm",
    Role.Q_B: "attn_q_b",
    Role.KV_A: "attn_kv_a_mqa",
    Role.KV_A_NORM: "attn_kv_a_norm",
    Role.KV_B: "attn_kv_b",
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


def unit(weight: Weight, place: Place, block: BlockType, moved: dict[str, float], dense: DenseRows | None) -> Unit:
    """A tensor of the file with its padding; see `encoded`."""
    size = tensor_bytes(block, place.slot.shape)

    def produce() -> Iterator[Buffer]:
        yield from encoded(weight, place, block, moved, dense=dense)
        yield bytes(padding(size))

    work = 0.0
    if isinstance(weight, TensorView) and block not in PLAIN:
        work = weight.size * (dense.work(block) if dense else SIMPLE_WORK)
    return Unit(place.name, size + padding(size), produce, work)


def encoded(
    weight: Weight, place: Place, block: BlockType, moved: dict[str, float], *, dense: DenseRows | None = None
) -> Iterator[np.ndarray]:
    """The bytes of `weight` as `block`, in runs of whole rows.

    Dense values are converted, quantized, or taken as they stand; a quantized view is dequantized for plain types, else
    carried over. By how many steps that moved a weight at most is noted in `moved`, by the weight's name, unless by
    none. With `dense`, dense values become what that makes of them.
    """
    if isinstance(weight, TensorView):
        return map(place.to_file, _packed_dense(weight, place, block, dense))
    return map(place.to_file, _packed(weight, place, block, moved))


def _packed_dense(view: TensorView, place: Place, block: BlockType, dense: DenseRows | None) -> Iterator[np.ndarray]:
    cols = view.size // view.shape[0]
    step = _run_length(cols, place.head, dense.elements if dense else CHUNK_ELEMENTS)
    made = dense.rows(place.name, place.slot, block) if dense and block not in PLAIN else None

    def packed(start: int) -> np.ndarray:
        values = view.fetch(start, min(start + step, view.shape[0]))
        if block in PLAIN:
            return converted(view.name, values, PLAIN[block], offset=start * cols)
        if made is not None:
            return made(values)
        if block in AS_THEY_STAND:
            return ternary_blocks(view, block, values)
        return quantize(view.name, block, values)

    return ordered_map(packed, range(0, view.shape[0], step), dense.threads if dense else 1)


def _packed(view: QuantizedView, place: Place, block: BlockType, moved: dict[str, float]) -> Iterator[np.ndarray]:
    tensor = view.read()
    step = _run_length(view.shape[1], place.head)
    for start in range(0, view.shape[0], step):
        part = tensor.part(slice(start, start + step))
        if block in PLAIN:
            yield converted(view.name, part.dequantized(), PLAIN[block], offset=start * view.shape[1])
            continue
        if block in LAYOUTS:
            yield packed(block, part)
            continue
        made = carried(view.name, block, part)
        if made.moved:
            moved[view.name] = max(made.moved, moved.get(view.name, 0.0))
        yield made.packed


def _run_length(cols: int, head: int, elements: int = CHUNK_ELEMENTS) -> int:
    """Rows of about so many weights, a multiple of `head`."""
    return max(1, elements // (cols * head)) * head


def dense_view(gguf: GGUFFile, place: Place) -> TensorView:
    """A tensor of a plain type, in its dtype."""
    dtype, shape = PLAIN[gguf.tensors[place.name].type], place.slot.shape

    def fetch(start: int, stop: int) -> np.ndarray:
        first, last = start // place.head * place.head, -(-stop // place.head) * place.head
        raw = place.to_model(gguf.rows(place.name, first, last))[start - first : stop - first]
        return np.ascontiguousarray(raw).view(dtype).reshape(stop - start, *shape[1:])

    return TensorView(place.slot.name, dtype, shape, fetch)


def blocks_view(gguf: GGUFFile, place: Place) -> QuantizedView:
    """A tensor of a type of `quantkit.exporters.gguf.types` as the codes and parameters of its blocks."""
    rows, cols = place.slot.shape
    block = gguf.tensors[place.name].type

    def read() -> QuantizedTensor:
        return unpacked(place.name, block, place.to_model(gguf.rows(place.name, 0, rows)))

    return QuantizedView(place.slot.name, (rows, cols), SCHEMES[block], read, stored_as=block.name.lower())


def quantized_view(gguf: GGUFFile, place: Place, scheme: AffineGroups | OffsetGroups) -> QuantizedView:
    """A tensor of blocks as codes and parameters of `scheme`; reading raises if the blocks are not of that scheme."""
    rows, cols = place.slot.shape
    block = gguf.tensors[place.name].type

    def read() -> QuantizedTensor:
        raw = place.to_model(gguf.rows(place.name, 0, rows))
        return recovered(place.name, block, raw, scheme)

    return QuantizedView(place.slot.name, (rows, cols), scheme, read, stored_as=block.name.lower())

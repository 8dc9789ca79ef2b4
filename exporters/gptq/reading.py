"""Reading GPTQ modules: which grid their tensors are on, and what the words mean. See `exporter.py`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters._hf_folder import Shapes, drop_zero_bias, module_name, named_tensor, taken_parts
from quantkit.exporters.gptq.config import BITS, METHOD, Settings
from quantkit.exporters.gptq.order import LatestRead, Stored, dense_in_order, finer_group, group_index
from quantkit.models.spec import Role, TensorSlot
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW, SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight

WORD_BITS = 32

QWEIGHT, QZEROS, GROUP_INDEX, SCALES = "qweight", "qzeros", "g_idx", "scales"
WORD = np.dtype("<i4")


def part_shapes(rows: int, cols: int, groups: int, bits: int, scale_dtype: np.dtype) -> Shapes:
    """The tensors of one module, in the order in which they are written."""
    return {
        QWEIGHT: (WORD, (cols * bits // WORD_BITS, rows)),
        QZEROS: (WORD, (groups, rows * bits // WORD_BITS)),
        GROUP_INDEX: (WORD, (cols,)),
        SCALES: (scale_dtype, (groups, rows)),
    }


def taken_weight(
    slot: TensorSlot, settings: Settings, tensors: dict[str, TensorView], latest: LatestRead, where: str
) -> Weight:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked.

    latest: shared by all weights of a folder.
    """
    module = module_name(slot.name)
    if slot.role is Role.EMBED:
        raise UnsupportedSpec(f"{where}: {slot.name} is quantized; {METHOD} keeps embeddings dense")
    if slot.name in tensors:
        raise InconsistentCheckpoint(f"{where}: {slot.name} is there dense and quantized")
    rows, cols = slot.shape
    bits, groups, scale_dtype = _found_grid(module, cols, settings, tensors, where)
    shapes = dict(part_shapes(rows, cols, groups, bits, scale_dtype))
    if f"{module}.{GROUP_INDEX}" not in tensors and not settings.desc_act:
        del shapes[GROUP_INDEX]
    parts = taken_parts(tensors, module, shapes, where=where, grid_name=f"int{bits} of {rows} x {cols}")
    drop_zero_bias(tensors, module, where)
    index = group_index(parts.get(GROUP_INDEX), cols, groups, where)
    symmetric = settings.symmetric if settings.symmetric is not None else _has_midpoints(parts, settings, bits, rows)
    names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
    size = finer_group(index, cols // groups)
    if size is None:
        return dense_in_order(slot, index, bits, lambda: _stored(parts, settings.kind, bits), latest)
    per_row = size == cols != settings.group_size
    spec = AffineGroups(
        bits=bits, group_size=PER_ROW if per_row else size, symmetric=symmetric, scale_dtype=names[scale_dtype]
    )
    order = index[::size]
    return QuantizedView(slot.name, (rows, cols), spec, lambda: _unpacked(slot.name, spec, parts, order, settings.kind))


def _found_grid(
    module: str, cols: int, settings: Settings, tensors: Mapping[str, TensorView], where: str
) -> tuple[int, int, np.dtype]:
    """Bits, groups and dtype of the scales as the tensors have them; settings for all modules must agree."""
    qweight, scales = tensors[f"{module}.{QWEIGHT}"], tensors.get(f"{module}.{SCALES}")
    if scales is None:
        raise IncompleteCheckpoint(f"{where}: tensor {module}.{SCALES} is missing")
    bits = next((b for b in BITS if divmod(cols * b, WORD_BITS) == (*qweight.shape[:1], 0)), 0)
    groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if scales.dtype not in SCALE_DTYPES.values() or not bits or not groups or cols % groups:
        raise InconsistentCheckpoint(
            f"{where}: {qweight.name} {list(qweight.shape)} with {scales.name} {scales.dtype} {list(scales.shape)} "
            f"are no weight of {cols} columns"
        )
    width = cols if settings.group_size == PER_ROW else min(settings.group_size, cols)
    if not settings.per_module and (bits, cols // groups) != (settings.bits, width):
        raise InconsistentCheckpoint(
            f"{where}: {module} has int{bits} in groups of {cols // groups}, the settings say int{settings.bits} in "
            f"groups of {width}"
        )
    return bits, groups, scales.dtype


def _zeros(view: TensorView, kind: str, bits: int, rows: int) -> np.ndarray:
    """Zero points, uint8 (groups, rows)."""
    words = view.read().view(np.uint32)
    if kind == "v2":
        return unpack_bitstream(words, bits, rows)
    ones = np.ones((1, rows), np.uint8)
    if bits == 3:  # fields cross words
        levels = np.uint8(2**bits)
        fields: np.ndarray = (unpack_bitstream(words, bits, rows) + ones) % levels
        return fields
    return unpack_bitstream(words + pack_bitstream(ones, bits), bits, rows)


def _stored(parts: Mapping[str, TensorView], kind: str, bits: int) -> Stored:
    scales = parts[SCALES].read().astype(np.float32)
    return Stored(parts[QWEIGHT].read(), _zeros(parts[QZEROS], kind, bits, scales.shape[1]).T, scales.T)


def _has_midpoints(parts: Mapping[str, TensorView], settings: Settings, bits: int, rows: int) -> bool:
    return bool((_zeros(parts[QZEROS], settings.kind, bits, rows) == 2 ** (bits - 1)).all())


def _unpacked(
    name: str, spec: AffineGroups, parts: Mapping[str, TensorView], order: np.ndarray, kind: str
) -> QuantizedTensor:
    """The tensor; `order` is the stored group of each group of the result."""
    rows = parts[SCALES].shape[1]
    zero = _zeros(parts[QZEROS], kind, spec.bits, rows)
    if spec.symmetric and not (zero == spec.midpoint).all():
        raise InconsistentCheckpoint(
            f"{name}: the settings say sym, but there are zero points other than {spec.midpoint}",
            hint="checkpoint_format may be wrong: gptq stores zero points less one, gptq_v2 as they are",
        )
    cols = parts[QWEIGHT].shape[0] * WORD_BITS // spec.bits
    codes = unpack_bitstream(np.ascontiguousarray(parts[QWEIGHT].read().T), spec.bits, cols)
    scale = parts[SCALES].read()
    return named_tensor(name, spec, codes, np.ascontiguousarray(scale[order].T), np.ascontiguousarray(zero[order].T))

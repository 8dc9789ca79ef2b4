"""The tensors of one weight, taken out of those of a folder, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quantkit.errors import InconsistentCheckpoint, UnsupportedSpec
from quantkit.exporters._hf_folder import module_name, taken_parts
from quantkit.exporters.mlx import affine, floats
from quantkit.exporters.mlx.settings import AFFINE, BITS, Stored
from quantkit.models.spec import TensorSlot
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.views import QuantizedView, TensorView


def told_by_shapes(slot: TensorSlot, module: str, tensors: Mapping[str, TensorView]) -> Stored | None:
    """What mlx-lm takes a module for that no setting names; None where it has no scales."""
    scales, weight = tensors.get(f"{module}.{affine.SCALES}"), tensors.get(slot.name)
    if scales is None:
        return None
    cols = slot.shape[1]
    shaped = weight is not None and len(weight.shape) == 2 and len(scales.shape) == 2 and scales.shape[1]
    if weight is None or not shaped or cols % scales.shape[1] or weight.shape[1] * 32 % cols:
        raise InconsistentCheckpoint(f"{slot.name}: codes and scales do not fit its {cols} columns")
    how = Stored(weight.shape[1] * 32 // cols, cols // scales.shape[1])
    if scales.dtype != floats.BYTE:
        return how
    mode = {(4, 16): "nvfp4", (4, 32): "mxfp4"}.get((how.bits, how.group_size), "mxfp8")
    return replace(how, mode=mode)


def taken_view(slot: TensorSlot, how: Stored, tensors: dict[str, TensorView], where: str) -> QuantizedView:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked."""
    module = module_name(slot.name)
    rows, cols = slot.shape
    if f"{module}.global_scale" in tensors:
        raise UnsupportedSpec(f"{where}: {module} has a scale for all of it (global_scale), which is not read")
    affine_here = how.mode == AFFINE
    if (affine_here and how.bits not in BITS) or cols % how.group_size or cols * how.bits % 32 or how.mode == "mxfp8":
        raise UnsupportedSpec(f"{where}: {slot.name} of {cols} columns is not read as {how}")
    if affine_here:
        names = (affine.SCALES, affine.BIASES)
        found = [tensors.get(f"{module}.{name}") for name in names]
        dtypes = [
            view.dtype if view is not None and view.dtype in SCALE_DTYPES.values() else affine.FLOAT16 for view in found
        ]
        shapes = affine.parts((rows, cols), how, (dtypes[0], dtypes[1]))
    else:
        shapes = floats.parts((rows, cols), how)
    taken = taken_parts(tensors, module, shapes, where=where, grid_name=f"{how} of {rows} x {cols}")
    if not affine_here and f"{module}.{affine.BIASES}" in tensors:
        raise InconsistentCheckpoint(f"{where}: {module} has biases, which {how} does not")
    reader = affine.read_view if affine_here else floats.read_view
    return reader(slot.name, (rows, cols), how, taken)

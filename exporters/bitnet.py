"""transformers' packed layout for BitNet: ternary weights in 2 bits, one scale for a whole matrix, inputs in int8.

Per ternary module P of N rows and K columns, N a multiple of 4; codes q are 0 .. 2:

    P.weight        uint8 [N/4, K]   four rows a byte: bits 2i and 2i + 1 of byte [r, k] are the code of row i N/4 + r
    P.weight_scale  float [1]
    weight[n, k] = weight_scale * (q - 1)

That is `linear_class: autobitlinear`, which multiplies by the scale. (`bitlinear` divides by `weight_scale`, so that it
holds no scale but powers of two; it is not read.) Every other weight is dense, and `modules_to_not_convert` names those
that transformers would take for ternary ones. Its layers round their inputs to int8, one scale for each token. Groups
that hold nothing but zeros may have had any scale. Source: transformers 5.24 `integrations/bitnet.py`,
`quantizers/quantizer_bitnet.py`, `utils/quantization_config.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import BadConfig, InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import (
    Layout,
    Shapes,
    architecture_of,
    checked_type,
    module_name,
    named_tensor,
    plan_folder,
    quantized_views,
    read_checkpoint,
    taken_parts,
)
from quantkit.exporters._widths import checked_bits, recorded_options
from quantkit.files.planned_files import Buffer, PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_plain_heads
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import parse_config
from quantkit.models.spec import FINAL_NORM, HEAD, LINEAR_ROLES, NORM_ROLES, Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.packing import pack_strided_rows, unpack_strided_rows
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW, SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight

METHOD, LINEAR_CLASS = "bitnet", "autobitlinear"
BITS, STRIDES = 2, 4
"""Of a code, and rows that share their bytes."""

HEAD_MODULE = module_name(HEAD)
WEIGHT, SCALE = "weight", "weight_scale"
BYTE = np.dtype("u1")


class BitNet:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = METHOD
    summary = "Hugging Face folder in transformers' BitNet layout, ternary weights with one scale per matrix"
    types = (LINEAR_CLASS,)
    targets = ()
    widths = ()
    engines = ("transformers", "reference")
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config.json names this method."""
        try:
            settings = read_folder_config(path).get("quantization_config")
        except QuantkitError:
            return False
        return isinstance(settings, Mapping) and settings.get("quant_method") == METHOD

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block, dense weights in the dtype that the source has them in.

        Whether one scale holds for a matrix is known from its codes and scales only, so these are read here.

        Raises:
            BadOption: an unknown type or architecture, or a width.
            UnsupportedSpec: a weight that does not fit; names it.
        """
        check_plain_heads(checkpoint, METHOD)
        checked_type(options.type, self.types, container=METHOD)
        refuse_block_options(options, container=METHOD)
        refuse_graph_options(options, container=METHOD)
        checked_bits(options.bits, self.widths, container=METHOD)
        model = architecture_of(checkpoint, options, container=METHOD, linears_only=True)
        scales = {view.name: _checked_scale(view) for view in quantized_views(model, linears_only=True)}
        return plan_folder(
            model,
            Layout(_shapes, _buffers, linears_only=True),
            _quantization_config(model),
            container=METHOD,
            read=self.read,
            options={"type": LINEAR_CLASS, **recorded_options(options)},
            notes=_notes(scales, model.weights[FINAL_NORM]),
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder, ours or another's; codes are read through the views.

        Raises:
            BadConfig, UnsupportedSpec: settings that are not understood.
            InconsistentCheckpoint, IncompleteCheckpoint: tensors that contradict settings or each other.
        """
        folder = open_folder(path)
        where = str(path / CONFIG_NAME)
        spec = parse_config(folder.config, where=where)
        dense = _read_settings(folder.config.get("quantization_config"), f"{where}: quantization_config")
        tensors = dict(folder.tensors)
        weights: dict[str, Weight] = {}
        for slot in spec.slots():
            if slot.role not in NORM_ROLES and tensors.get(slot.name) is not None and tensors[slot.name].dtype == BYTE:
                if module_name(slot.name) in dense or slot.role is Role.EMBED:
                    raise InconsistentCheckpoint(f"{path}: {slot.name} is packed, where {METHOD} keeps it dense")
                weights[slot.name] = _taken(slot, tensors, str(path))
        if not weights:
            raise InconsistentCheckpoint(f"{path}: the config says {METHOD}, but no weight is packed")
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=self.name)


def _checked_scale(view: QuantizedView) -> np.generic:
    """The one scale of a ternary matrix; raises `UnsupportedSpec` where the layout does not hold it."""
    scheme, (rows, _) = view.scheme, view.shape
    if not isinstance(scheme, AffineGroups) or not scheme.ternary:
        raise UnsupportedSpec(
            f"{view.name}: {METHOD} holds ternary weights, not {scheme}", hint="compressed-tensors and gguf hold it"
        )
    if rows % STRIDES:
        raise UnsupportedSpec(
            f"{view.name} has {rows} rows; {METHOD} packs multiples of {STRIDES}",
            hint="keep this tensor dense, or choose compressed-tensors or gguf",
        )
    return _one_scale(view.name, view.read())


def _one_scale(name: str, tensor: QuantizedTensor) -> np.generic:
    """The scale of every group that has a weight other than zero, or of the first; raises `UnsupportedSpec`."""
    rows, groups = tensor.scale.shape
    used = (tensor.codes != tensor.scheme.zero_code(tensor.arrays)).reshape(rows, groups, -1).any(axis=-1)
    found = np.unique(tensor.scale[used].astype(np.float32))
    if len(found) > 1:
        raise UnsupportedSpec(
            f"{name}: {METHOD} has one scale for a whole matrix, this one has {len(found):,} scales ({tensor.scheme})",
            hint="compressed-tensors and gguf hold a scale for each group",
        )
    scale: np.generic = tensor.scale[used][0] if len(found) else tensor.scale[0, 0]
    return scale


def _notes(scales: Mapping[str, np.generic], norm: Weight) -> Iterator[str]:
    """transformers loads such a folder in the dtype of its dense weights, and rounds scales to that."""
    dtype = norm.dtype if isinstance(norm, TensorView) else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        odd = [name for name, scale in scales.items() if np.float32(scale.astype(dtype)) != np.float32(scale)]
    if odd:
        yield f"{len(odd)} scales ({odd[0]} ...) are no {dtype} numbers, to which transformers rounds them"


def _quantization_config(model: Checkpoint) -> dict[str, Any]:
    """The settings, which name every linear layer that stays dense; a tied head is a layer as well."""
    roles = {slot.name: slot.role for slot in model.spec.slots()}
    weights = [weight for weight in model.weights.values() if roles[weight.name] in LINEAR_ROLES]
    return {
        "linear_class": LINEAR_CLASS,
        "modules_to_not_convert": [*(module_name(w.name) for w in weights if isinstance(w, TensorView)), HEAD_MODULE],
        "quant_method": METHOD,
        "quantization_mode": "offline",
        "use_rms_norm": False,
    }


def _shapes(view: QuantizedView) -> Shapes:
    return _parts(view.shape, SCALE_DTYPES[view.scheme.scale_dtype])


def _parts(shape: tuple[int, int], scale_dtype: np.dtype) -> Shapes:
    rows, cols = shape
    return {SCALE: (scale_dtype, (1,)), WEIGHT: (BYTE, (rows // STRIDES, cols))}


def _buffers(name: str, tensor: QuantizedTensor) -> Iterator[Buffer]:
    yield np.array([_one_scale(name, tensor)])
    yield pack_strided_rows(tensor.codes, BITS)


def _read_settings(settings: object, where: str) -> frozenset[str]:
    """Modules that are dense; everything else must be as this container has it."""
    if not isinstance(settings, Mapping):
        raise BadConfig(f"{where} must be an object")
    only = {"linear_class": ("bitlinear", LINEAR_CLASS), "quantization_mode": ("offline", "offline")}
    for key, (default, expected) in only.items():
        found = settings.get(key, default)
        if found != expected:
            raise UnsupportedSpec(f"{where}: {key} {str(found)[:80]!r} is not supported; only {expected!r}")
    if settings.get("use_rms_norm"):
        raise UnsupportedSpec(f"{where}: use_rms_norm puts norms before the layers, which models here do not have")
    dense = settings.get("modules_to_not_convert") or []
    if not isinstance(dense, list) or not all(isinstance(name, str) for name in dense):
        raise BadConfig(f"{where}: modules_to_not_convert must be a list of names")
    return frozenset(dense)


def _taken(slot: TensorSlot, tensors: dict[str, TensorView], where: str) -> QuantizedView:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked."""
    rows, cols = slot.shape
    if rows % STRIDES:
        raise InconsistentCheckpoint(f"{where}: {slot.name} is packed, but {rows} rows are no multiple of {STRIDES}")
    names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
    scale = tensors.get(f"{module_name(slot.name)}.{SCALE}")
    dtype = scale.dtype if scale is not None and scale.dtype in names else np.dtype("<f4")
    spec = AffineGroups(bits=BITS, group_size=PER_ROW, scale_dtype=names[dtype], ternary=True)
    parts = taken_parts(
        tensors,
        module_name(slot.name),
        _parts((rows, cols), dtype),
        where=where,
        grid_name=f"{spec} of {rows} x {cols}",
    )
    return QuantizedView(slot.name, (rows, cols), spec, lambda: _tensor(slot.name, spec, rows, parts))


def _tensor(name: str, spec: AffineGroups, rows: int, parts: Mapping[str, TensorView]) -> QuantizedTensor:
    scale = np.repeat(parts[SCALE].read()[None], rows, axis=0)
    codes = unpack_strided_rows(parts[WEIGHT].read(), BITS)
    return named_tensor(name, spec, codes, scale, np.full(scale.shape, spec.midpoint, np.uint8))


EXPORTER = BitNet()

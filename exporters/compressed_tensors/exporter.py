"""compressed-tensors, layout `pack-quantized`: the folder that vLLM and transformers load, and quantkit's own
intermediate form.

Per quantized module P of N rows, K columns and G groups per row, b bits; codes q and zero points z are 0 .. 2**b - 1:

    P.weight_shape       int64 [2]                  N, K
    P.weight_packed      int32 [N, ceil(K*b/32)]    per row one bitstream, code i at bit i*b, lowest bit first
    P.weight_zero_point  int32 [ceil(N*b/32), G]    the same down each column; only where zero points are free
    P.weight_scale       float [N, G]
    weight = scale * (q - z), z = 2**(b - 1) where there is no P.weight_zero_point

Ternary weights are codes 1, 2 and 3 of 2 bits, and the name of their group in config.json says that 0 does not occur.

Everything else lies as in any Hugging Face folder; `config.json` says in `quantization_config` which module is which.
The package speaks of signed codes, q - 2**(b - 1), but stores these. Source: package compressed-tensors 0.20.0,
`compressors/pack_quantized/`. Files of older versions differ for 3, 5, 6 and 7 bits and are refused by their shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantkit.errors import (
    BadConfig,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import (
    Layout,
    Shapes,
    architecture_of,
    checked_type,
    module_name,
    module_schemes,
    named_tensor,
    plan_folder,
    read_checkpoint,
    taken_parts,
)
from quantkit.exporters._widths import checked_bits, recorded_options, stored_wider
from quantkit.exporters.compressed_tensors.config import (
    FORMAT,
    METHOD,
    quantization_config,
    read_schemes,
)
from quantkit.files.planned_files import Buffer, PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import parse_config
from quantkit.models.spec import NORM_ROLES, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, TensorView, Weight

SHAPE, PACKED, ZERO, SCALE = "weight_shape", "weight_packed", "weight_zero_point", "weight_scale"
GROUP_INDEX = "weight_g_idx"
SHAPE_DTYPE, PACKED_DTYPE = np.dtype("<i8"), np.dtype("<i4")


class CompressedTensors:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = METHOD
    summary = "Hugging Face folder with packed integer weights; what `quantize` writes"
    types = (FORMAT,)
    targets = ()
    widths = tuple(range(2, 9))
    engines = ("transformers", "vllm", "reference")
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config.json names this method."""
        try:
            config = read_folder_config(path)
        except QuantkitError:
            return False
        quantization = config.get("quantization_config")
        return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block, dense weights in the dtype that the source has them in.

        Raises:
            UnsupportedSpec: no weight is quantized; or one that cannot be stored in the bits asked for.
            BadOption: an unknown type, width or architecture.
        """
        checked_type(options.type, self.types, container=METHOD)
        refuse_block_options(options, container=METHOD)
        refuse_graph_options(options, container=METHOD)
        bits = checked_bits(options.bits, self.widths, container=METHOD)
        model = architecture_of(checkpoint, options, container=METHOD)
        wider = stored_wider(
            model, bits or min(self.widths), container=METHOD, asked=bits is not None, keeps_ternary=True
        )
        specs = module_schemes(wider.model, container=METHOD)
        return plan_folder(
            wider.model,
            Layout(_shapes, _buffers),
            quantization_config(specs),
            container=METHOD,
            read=self.read,
            options={"type": FORMAT, **recorded_options(options)},
            notes=wider.notes,
            stored=wider.changed,
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder, ours or another's; codes are read through the views.

        Raises:
            UnsupportedSpec: a scheme or layout that is not integer weights with group scales.
            InconsistentCheckpoint: tensors and `quantization_config` contradict each other.
            IncompleteCheckpoint: a tensor is missing.
        """
        folder = open_folder(path)
        where = str(path / CONFIG_NAME)
        spec = parse_config(folder.config, where=where)
        quantization = folder.config.get("quantization_config")
        if not isinstance(quantization, Mapping):
            raise BadConfig(f"{where}: quantization_config must be an object")
        schemes = read_schemes(quantization, f"{where}: quantization_config")
        tensors = dict(folder.tensors)
        weights: dict[str, Weight] = {}
        for slot in spec.slots():
            scheme = schemes.of(module_name(slot.name)) if slot.role not in NORM_ROLES else None
            if scheme is not None:
                weights[slot.name] = _taken(slot, scheme, tensors, path)
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=self.name)


def _shapes(view: QuantizedView) -> Shapes:
    return _layout(view.shape, affine(view.name, view.scheme, container=METHOD), view.name)


def _layout(shape: tuple[int, int], spec: AffineGroups, name: str) -> Shapes:
    """Part to dtype and shape for a matrix of `shape`."""
    rows, cols = shape
    groups = spec.groups(cols, name=name)
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
        SHAPE: (SHAPE_DTYPE, (2,)),
        PACKED: (PACKED_DTYPE, (rows, _words(cols, spec.bits))),
        ZERO: (PACKED_DTYPE, (_words(rows, spec.bits), groups)),
        SCALE: (SCALE_DTYPES[spec.scale_dtype], (rows, groups)),
    }
    if spec.symmetric:
        del layout[ZERO]
    return layout


def _lowest(scheme: AffineGroups) -> int:
    """The stored code of code 0."""
    return int(2 ** (scheme.bits - 1)) - scheme.midpoint if scheme.symmetric else 0


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def _buffers(name: str, tensor: QuantizedTensor) -> Iterator[Buffer]:
    scheme = affine(name, tensor.scheme, container=METHOD)
    yield np.array(tensor.shape, SHAPE_DTYPE)
    yield pack_bitstream(tensor.codes + np.uint8(_lowest(scheme)), scheme.bits)
    if not scheme.symmetric:
        yield np.ascontiguousarray(pack_bitstream(tensor.zero.T, scheme.bits).T)
    yield np.ascontiguousarray(tensor.scale)


def _taken(slot: TensorSlot, scheme: AffineGroups, tensors: dict[str, TensorView], where: Path) -> QuantizedView:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked."""
    module = module_name(slot.name)
    if slot.name in tensors:
        raise InconsistentCheckpoint(f"{where}: {slot.name} is dense, but config.json says {scheme}")
    if f"{module}.{GROUP_INDEX}" in tensors:
        raise UnsupportedSpec(
            f"{where}: {module} has columns in another order ({GROUP_INDEX}); groups must be contiguous"
        )
    scale = tensors.get(f"{module}.{SCALE}")
    names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
    spec = replace(scheme, scale_dtype=names[scale.dtype]) if scale is not None and scale.dtype in names else scheme
    rows, cols = slot.shape
    shapes = _layout((rows, cols), spec, f"{where}: {slot.name}")
    parts = taken_parts(tensors, module, shapes, where=str(where), grid_name=f"{spec} of {rows} x {cols}")
    if f"{module}.{ZERO}" in tensors:
        raise InconsistentCheckpoint(f"{where}: {module}.{ZERO} is there, but config.json says {spec}")
    stored = parts[SHAPE].read().tolist()
    if stored != [rows, cols]:
        raise InconsistentCheckpoint(f"{where}: {module}.{SHAPE} says {stored}, the model needs [{rows}, {cols}]")
    return QuantizedView(slot.name, (rows, cols), spec, lambda: _unpacked(slot.name, (rows, cols), spec, parts))


def _unpacked(
    name: str, shape: tuple[int, int], spec: AffineGroups, parts: Mapping[str, TensorView]
) -> QuantizedTensor:
    rows, cols = shape
    scale = parts[SCALE].read()
    zero = np.full(scale.shape, spec.midpoint, np.uint8)
    if not spec.symmetric:
        zero = np.ascontiguousarray(unpack_bitstream(parts[ZERO].read().T, spec.bits, rows).T)
    codes = unpack_bitstream(parts[PACKED].read(), spec.bits, cols)
    lowest = _lowest(spec)
    if lowest and (codes < lowest).any():
        raise InconsistentCheckpoint(
            f"{name}: config.json says {spec}, but there are codes below {lowest}, which stands for -1"
        )
    codes -= np.uint8(lowest)
    return named_tensor(name, spec, codes, scale, zero)


EXPORTER = CompressedTensors()

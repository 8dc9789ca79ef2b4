"""compressed-tensors, layout `pack-quantized`: the folder that vLLM and transformers load, and quantkit's own
intermediate form.

Per quantized module P of N rows, K columns and G groups per row, b bits; codes q and zero points z are 0 .. 2**b - 1:

    P.weight_shape       int64 [2]                  N, K
    P.weight_packed      int32 [N, ceil(K*b/32)]    per row one bitstream, code i at bit i*b, lowest bit first
    P.weight_zero_point  int32 [ceil(N*b/32), G]    the same down each column; only where zero points are free
    P.weight_scale       float [N, G]
    weight = scale * (q - z), z = 2**(b - 1) where there is no P.weight_zero_point

Everything else lies as in any Hugging Face folder; `config.json` says in `quantization_config` which module is which.
The package speaks of signed codes, q - 2**(b - 1), but stores these. Source: package compressed-tensors 0.20.0,
`compressors/pack_quantized/`. Files of older versions differ for 3, 5, 6 and 7 bits and are refused by their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.bits import pack_bitstream, unpack_bitstream
from quantkit.cast import check_range
from quantkit.checkpoint import Checkpoint
from quantkit.config import config_file, native_config, with_dtype
from quantkit.errors import (
    BadConfig,
    BadOption,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters._compressed_tensors_config import (
    EMBEDDING,
    FORMAT,
    METHOD,
    quantization_config,
    read_schemes,
)
from quantkit.family import NORM_ROLES, TensorSlot, parse_config
from quantkit.fold import with_architecture, with_source_dtypes
from quantkit.folder import CONFIG_NAME, MAX_CONFIG_BYTES, open_folder, select_weights
from quantkit.json_file import read_json
from quantkit.layout import Buffer, PlannedArtifact, PlannedTensor, blob
from quantkit.protocols import ExportOptions
from quantkit.quantized import QuantizedTensor
from quantkit.safetensors_file import TensorEntry, TensorUnit, plan_safetensors
from quantkit.spec import SCALE_DTYPES, QuantSpec
from quantkit.tensor import QuantizedView, TensorView, Weight

SHAPE, PACKED, ZERO, SCALE = "weight_shape", "weight_packed", "weight_zero_point", "weight_scale"
GROUP_INDEX = "weight_g_idx"
FINAL_NORM = "model.norm.weight"
SHAPE_DTYPE, PACKED_DTYPE = np.dtype("<i8"), np.dtype("<i4")


class CompressedTensors:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = METHOD
    summary = "Hugging Face folder with packed integer weights; what `quantize` writes"
    types = (FORMAT,)
    engines = ("transformers", "vllm", "reference")

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config.json names this method."""
        try:
            config = read_json(path / CONFIG_NAME, limit=MAX_CONFIG_BYTES)
        except QuantkitError:
            return False
        quantization = config.get("quantization_config")
        return isinstance(quantization, Mapping) and quantization.get("quant_method") == METHOD

    def accepts(self, spec: QuantSpec, options: ExportOptions) -> None:
        """Every `QuantSpec` fits."""

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block, dense weights in the dtype that the source has them in.

        Raises:
            UnsupportedSpec: no weight is quantized.
            BadOption: an unknown type or architecture.
        """
        if options.type not in (None, *self.types):
            raise BadOption(f"{METHOD} has no type {options.type!r}", hint=f"choose {FORMAT}, or leave it out")
        model = with_architecture(checkpoint, options.arch)
        if model is not checkpoint:
            model = with_source_dtypes(model, checkpoint)
        specs = _module_specs(model)
        if not any(specs.values()):
            raise UnsupportedSpec(
                f"{METHOD} holds integer weights, and {model.path} has none",
                hint="quantize it first, or write dense weights with `export hf`",
            )
        config = {**_config(model), "quantization_config": quantization_config(specs)}
        return PlannedArtifact(
            format=self.name,
            folder=True,
            files=(
                config_file(config),
                *plan_safetensors(_units(model)),
                *(blob(name, read()) for name, read in sorted(model.files.items())),
            ),
            tensors=tuple(_planned_tensor(weight) for weight in model.weights.values()),
            options={"type": FORMAT, "arch": options.arch},
            notes=(*model.notes, *_notes(specs)),
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
            scheme = schemes.of(_module(slot.name)) if slot.role not in NORM_ROLES else None
            if scheme is not None:
                weights[slot.name] = _taken(slot, scheme, tensors, path)
        return Checkpoint(
            path=path,
            format=self.name,
            config=folder.config,
            spec=spec,
            weights=select_weights({**tensors, **weights}, spec, str(path)),
            files=folder.files,
            inputs=folder.inputs,
            notes=folder.notes,
        )


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json without the quantization; its dtype is that of the norms, which are always dense."""
    norm = checkpoint.weights[FINAL_NORM]
    config = native_config(checkpoint)
    return with_dtype(config, norm.dtype) if isinstance(norm, TensorView) else config


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _module_specs(checkpoint: Checkpoint) -> dict[str, QuantSpec | None]:
    """Module to spec, None where it is dense, for everything but norms."""
    return {
        _module(slot.name): weight.spec if isinstance(weight := checkpoint.weights[slot.name], QuantizedView) else None
        for slot in checkpoint.spec.slots()
        if slot.role not in NORM_ROLES
    }


def _notes(specs: Mapping[str, QuantSpec | None]) -> Iterator[str]:
    """What loaders cannot do with such a folder."""
    loading = "transformers 5 loads it with CompressedTensorsConfig(dequantize=True) only"
    if any(spec is not None and not spec.symmetric for spec in specs.values()):
        yield f"zero points are packed: {loading}"
    if specs[EMBEDDING] is not None:
        yield f"the embedding is quantized: {loading}"


def _units(checkpoint: Checkpoint) -> list[TensorUnit]:
    """Embedding, every block, final norm and head as one unit each, so that a block is written whole or not."""
    members: dict[str, list[Weight]] = {}
    for slot in checkpoint.spec.slots():
        name = slot.name if slot.layer is None else f"model.layers.{slot.layer}"
        members.setdefault(name, []).append(checkpoint.weights[slot.name])
    return [
        TensorUnit(name, tuple(entry for weight in weights for entry in _entries(weight)), _producer(weights))
        for name, weights in members.items()
    ]


def _entries(weight: Weight) -> list[TensorEntry]:
    """The tensors that hold `weight`, in the order in which `_buffers` yields them: wide elements first."""
    if isinstance(weight, TensorView):
        return [TensorEntry(weight.name, weight.dtype, weight.shape)]
    layout = _layout(weight.shape, weight.spec, weight.name)
    return [TensorEntry(f"{_module(weight.name)}.{part}", dtype, shape) for part, (dtype, shape) in layout.items()]


def _layout(shape: tuple[int, int], spec: QuantSpec, name: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
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


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def _producer(weights: Sequence[Weight]) -> Callable[[], Iterator[Buffer]]:
    def produce() -> Iterator[Buffer]:
        for weight in weights:
            yield from _dense_chunks(weight) if isinstance(weight, TensorView) else _buffers(weight.read())

    return produce


def _dense_chunks(view: TensorView) -> Iterator[Buffer]:
    position = 0
    for chunk in view.chunks():
        check_range(view.name, chunk, view.dtype, offset=position)
        position += chunk.size
        yield chunk


def _buffers(tensor: QuantizedTensor) -> Iterator[Buffer]:
    yield np.array(tensor.shape, SHAPE_DTYPE)
    yield pack_bitstream(tensor.codes, tensor.spec.bits)
    if not tensor.spec.symmetric:
        yield np.ascontiguousarray(pack_bitstream(tensor.zero.T, tensor.spec.bits).T)
    yield np.ascontiguousarray(tensor.scale)


def _planned_tensor(weight: Weight) -> PlannedTensor:
    kind = str(weight.dtype) if isinstance(weight, TensorView) else str(weight.spec)
    return PlannedTensor(weight.name, kind, weight.shape, sum(entry.nbytes for entry in _entries(weight)))


def _taken(slot: TensorSlot, scheme: QuantSpec, tensors: dict[str, TensorView], where: Path) -> QuantizedView:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked."""
    module = _module(slot.name)
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
    parts = {}
    for part, (dtype, shape) in _layout((rows, cols), spec, f"{where}: {slot.name}").items():
        view = tensors.pop(f"{module}.{part}", None)
        if view is None:
            raise IncompleteCheckpoint(f"{where}: tensor {module}.{part} is missing")
        if view.dtype != dtype or view.shape != shape:
            raise InconsistentCheckpoint(
                f"{where}: {view.name} is {view.dtype} {list(view.shape)}, "
                f"{spec} of {rows} x {cols} needs {dtype} {list(shape)}"
            )
        parts[part] = view
    if f"{module}.{ZERO}" in tensors:
        raise InconsistentCheckpoint(f"{where}: {module}.{ZERO} is there, but config.json says {spec}")
    stored = parts[SHAPE].read().tolist()
    if stored != [rows, cols]:
        raise InconsistentCheckpoint(f"{where}: {module}.{SHAPE} says {stored}, the model needs [{rows}, {cols}]")
    return QuantizedView(slot.name, (rows, cols), spec, lambda: _unpacked(slot.name, (rows, cols), spec, parts))


def _unpacked(name: str, shape: tuple[int, int], spec: QuantSpec, parts: Mapping[str, TensorView]) -> QuantizedTensor:
    rows, cols = shape
    scale = parts[SCALE].read()
    zero = np.full(scale.shape, spec.midpoint, np.uint8)
    if not spec.symmetric:
        zero = np.ascontiguousarray(unpack_bitstream(parts[ZERO].read().T, spec.bits, rows).T)
    codes = unpack_bitstream(parts[PACKED].read(), spec.bits, cols)
    try:
        return QuantizedTensor(spec=spec, codes=codes, scale=scale, zero=zero)
    except QuantkitError as error:
        raise type(error)(f"{name}: {error}", hint=error.hint) from None


EXPORTER = CompressedTensors()

"""What every container that is a Hugging Face folder with packed integer weights has in common.

Such containers differ in the tensors that stand for one quantized weight (`Layout`) and in what config.json says
about them; names, order, dense weights, folding and the files around are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.errors import BadOption, IncompleteCheckpoint, InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters._hf_config import config_files, native_config, with_dtype
from quantkit.exporters._plain_scales import with_plain_scales
from quantkit.exporters._recorded import measured
from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedFile, PlannedTensor, blob
from quantkit.files.safetensors_header import TensorEntry
from quantkit.files.safetensors_writer import TensorUnit, plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import Folder
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.models.layouts.selection import AnyWeight, select_weights
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import config_notes
from quantkit.models.spec import BLOCKS, EMBEDDING, FINAL_NORM, HEAD, NORM_ROLES, ModelSpec, Role
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOAT32, check_range
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, TensorView, Weight, mixture
from quantkit.text.companions import with_companions

if TYPE_CHECKING:
    from typing import TypeGuard

ENDS = (EMBEDDING, HEAD)

Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Part of a quantized weight ("qweight", "scales") to dtype and shape, in the order in which their bytes follow."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a container stores one quantized weight.

    shapes(view): its parts. buffers(name, tensor): their bytes, in that order; wide elements first keep data aligned.
    linears_only: embedding and head are always dense; quantized ones are written as their float32 values, exactly.
    """

    shapes: Callable[[QuantizedView], Shapes]
    buffers: Callable[[str, QuantizedTensor], Iterator[Buffer]]
    linears_only: bool = False

    def packs(self, weight: Weight) -> TypeGuard[QuantizedView]:
        """Whether `weight` is stored as integers."""
        return isinstance(weight, QuantizedView) and not (self.linears_only and weight.name in ENDS)


def module_name(weight_name: str) -> str:
    """The module that a weight belongs to: `model.layers.0.mlp.up_proj`."""
    return weight_name.removesuffix(".weight")


def architecture_of(
    checkpoint: Checkpoint, options: ExportOptions, *, container: str, linears_only: bool = False
) -> Checkpoint:
    """`checkpoint` in the architecture asked for, dense weights in the dtypes that they had.

    linears_only: whether a quantized embedding or head does not count.

    Raises:
        BadOption: an unknown architecture.
        UnsupportedSpec: no weight is quantized.
    """
    folded = with_architecture(checkpoint, options.arch)
    model = with_plain_scales(folded if folded is checkpoint else with_source_dtypes(folded, checkpoint))
    if not quantized_views(model, linears_only=linears_only):
        told = f" ({'; '.join(model.notes)})" if model.notes else ""
        raise UnsupportedSpec(
            f"{container} holds integer weights, and {model.path} has none{told}",
            hint="quantize it first, or write dense weights with `export hf`",
        )
    return model


def read_checkpoint(
    folder: Folder,
    spec: ModelSpec,
    tensors: Mapping[str, AnyWeight],
    *,
    container: str,
    notes: Iterable[str] = (),
) -> Checkpoint:
    """The checkpoint that `folder` holds.

    Args:
        folder: what was opened.
        spec: the model that config.json describes.
        tensors: every weight found, the quantized ones already put together.
        container: the exporter's name.
        notes: what the reader has to say besides the folder's own notes.

    Raises:
        IncompleteCheckpoint, InconsistentCheckpoint, MalformedFile: see `select_weights` and `with_companions`.
    """
    checkpoint = Checkpoint(
        path=folder.path,
        format=container,
        config=folder.config,
        spec=spec,
        weights=select_weights(tensors, spec, str(folder.path)),
        files=folder.files,
        inputs=folder.inputs,
        renamed=folder.renamed,
        notes=(*folder.notes, *config_notes(folder.config, where=str(folder.path / CONFIG_NAME)), *notes),
    )
    return with_companions(checkpoint)


def quantized_views(checkpoint: Checkpoint, *, linears_only: bool = False) -> list[QuantizedView]:
    """The quantized weights in the order of the model, without embedding and head if `linears_only`."""
    weights = checkpoint.weights.values()
    return [w for w in weights if isinstance(w, QuantizedView) and not (linears_only and w.name in ENDS)]


def checked_type(wanted: str | None, types: Sequence[str], *, container: str) -> str | None:
    """`wanted` if it is None or one of `types`; raises `BadOption` otherwise."""
    if wanted not in (None, *types):
        raise BadOption(f"{container} has no type {wanted!r}", hint=f"choose {' or '.join(types)}, or leave it out")
    return wanted


def module_schemes(checkpoint: Checkpoint, *, container: str) -> dict[str, AffineGroups | None]:
    """Module to scheme, None where it is dense, for everything but norms; raises as `affine`."""
    return {
        module_name(slot.name): affine(slot.name, weight.scheme, container=container)
        if isinstance(weight := checkpoint.weights[slot.name], QuantizedView)
        else None
        for slot in checkpoint.spec.slots()
        if slot.role not in NORM_ROLES
    }


def check_fused(checkpoint: Checkpoint, *, container: str) -> None:
    """Raise `UnsupportedSpec` when q, k and v of a block, or gate and up, are not on one grid (or all dense)."""
    for layer in range(checkpoint.spec.num_hidden_layers):
        for roles in (group.roles for group in checkpoint.spec.groups):
            mixed = mixture([_layer_weight(checkpoint, layer, role) for role in roles])
            if mixed is not None:
                raise UnsupportedSpec(
                    f"{mixed}: engines that load {container} make one matrix of them",
                    hint="quantize q, k and v alike, and gate and up alike; or choose compressed-tensors",
                )


def _layer_weight(checkpoint: Checkpoint, layer: int, role: Role) -> Weight:
    return checkpoint.weights[checkpoint.spec.weight_name(layer, role)]


def plan_folder(
    model: Checkpoint,
    layout: Layout,
    quantization: Mapping[str, Any],
    *,
    container: str,
    read: Callable[[Path], Checkpoint],
    options: Mapping[str, Any],
    files: Iterable[PlannedFile] = (),
    notes: Iterable[str] = (),
    stored: Mapping[str, QuantizedView] | None = None,
    keys: Sequence[str] = ("quantization_config",),
    made_for: str = "pt",
    config_class: bool = True,
    figures: Callable[[], Mapping[str, Any]] = dict,
) -> PlannedArtifact:
    """Plan the folder of `model` (see `architecture_of`), one unit per block.

    Args:
        model: what to write, as it is.
        layout: how quantized weights lie; dense ones keep their dtype.
        quantization: what config.json says of it, under each of `keys`.
        container: the exporter's name.
        read: the exporter's reader.
        options: what the manifest records.
        files: whatever else the container wants in the folder.
        notes: what the user should know, besides the model's own notes.
        stored, figures: see `PlannedArtifact`.
        made_for, config_class: see `header_bytes` and `config_files`.
    """
    config = native_config(model)
    norm = model.weights[FINAL_NORM]
    if isinstance(norm, TensorView):
        config = with_dtype(config, norm.dtype)
    return PlannedArtifact(
        format=container,
        folder=True,
        files=(
            *config_files(
                model.spec, {**config, **{key: dict(quantization) for key in keys}}, config_class=config_class
            ),
            *files,
            *plan_safetensors(_units(model, layout), made_for=made_for),
            *(blob(name, read()) for name, read in sorted(model.files.items())),
        ),
        tensors=tuple(_planned_tensor(weight, layout) for weight in model.weights.values()),
        options=options,
        notes=(*model.notes, *_notes(model, layout, container), *notes),
        measure=measured(model, read),
        stored=stored or {},
        figures=figures,
    )


def _units(model: Checkpoint, layout: Layout) -> list[TensorUnit]:
    """Embedding, every block, final norm and head as one unit each, so that a block is written whole or not."""
    members: dict[str, list[Weight]] = {}
    for slot in model.spec.slots():
        name = slot.name if slot.layer is None else f"{BLOCKS}{slot.layer}"
        members.setdefault(name, []).append(model.weights[slot.name])
    return [
        TensorUnit(
            name,
            tuple(entry for weight in weights for entry in _entries(weight, layout)),
            _producer(weights, layout),
        )
        for name, weights in members.items()
    ]


def _entries(weight: Weight, layout: Layout) -> list[TensorEntry]:
    if layout.packs(weight):
        module = module_name(weight.name)
        return [TensorEntry(f"{module}.{part}", dtype, shape) for part, (dtype, shape) in layout.shapes(weight).items()]
    return [TensorEntry(weight.name, weight.dtype if isinstance(weight, TensorView) else FLOAT32, weight.shape)]


def _producer(weights: Sequence[Weight], layout: Layout) -> Callable[[], Iterator[Buffer]]:
    def produce() -> Iterator[Buffer]:
        for weight in weights:
            if layout.packs(weight):
                yield from layout.buffers(weight.name, weight.read())
            else:
                yield from dense_chunks(weight)

    return produce


def dense_chunks(weight: Weight) -> Iterator[Buffer]:
    """The values of a dense tensor as they are, of a quantized one in float32, after a check that they are finite."""
    position = 0
    for chunk in weight.chunks() if isinstance(weight, TensorView) else weight.dequantized_chunks():
        check_range(weight.name, chunk, chunk.dtype, offset=position)
        position += chunk.size
        yield chunk


def _planned_tensor(weight: Weight, layout: Layout) -> PlannedTensor:
    entries = _entries(weight, layout)
    kind = str(weight.scheme) if layout.packs(weight) else str(entries[0].dtype)
    return PlannedTensor(weight.name, kind, weight.shape, sum(entry.nbytes for entry in entries))


def _notes(model: Checkpoint, layout: Layout, container: str) -> Iterator[str]:
    for weight in model.weights.values():
        if isinstance(weight, QuantizedView) and not layout.packs(weight):
            yield f"{weight.name} ({weight.scheme}) becomes float32 values: {container} keeps embedding and head dense"


def taken_parts(
    tensors: dict[str, TensorView], module: str, shapes: Shapes, *, where: str, grid_name: str
) -> dict[str, TensorView]:
    """Remove the parts of `module` from `tensors` and return them, dtypes and shapes checked.

    Raises:
        IncompleteCheckpoint: a part is missing.
        InconsistentCheckpoint: a part has another dtype or shape than `grid_name` asks for.
    """
    parts = {}
    for part, (dtype, shape) in shapes.items():
        view = tensors.pop(f"{module}.{part}", None)
        if view is None:
            raise IncompleteCheckpoint(f"{where}: tensor {module}.{part} is missing")
        if view.dtype != dtype or view.shape != shape:
            raise InconsistentCheckpoint(
                f"{where}: {view.name} is {view.dtype} {list(view.shape)}, {grid_name} needs {dtype} {list(shape)}"
            )
        parts[part] = view
    return parts


def drop_zero_bias(tensors: dict[str, TensorView], module: str, where: str) -> None:
    """Remove a bias of zeros, which older writers add to every layer; raises `UnsupportedSpec` for any other."""
    bias = tensors.pop(f"{module}.bias", None)
    if bias is not None and bias.read().astype(np.float32).any():
        raise UnsupportedSpec(f"{where}: {bias.name} is not zero; models of this family have no biases")


def named_tensor(
    name: str, spec: AffineGroups, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> QuantizedTensor:
    """A `QuantizedTensor` whose refusals begin with the weight's name."""
    try:
        return QuantizedTensor(spec, codes, {"scale": scale, "zero": zero})
    except QuantkitError as error:
        raise type(error)(f"{name}: {error}", hint=error.hint) from None


def float16_scales(name: str, tensor: QuantizedTensor, *, container: str) -> np.ndarray:
    """The scales as float16, which must hold every one of them exactly; raises `UnsupportedSpec` otherwise."""
    if tensor.scale.dtype == np.float16:
        return tensor.scale
    wide = tensor.scale.astype(np.float32)
    with np.errstate(over="ignore"):
        halves = wide.astype(np.float16)
    lost = halves.astype(np.float32) != wide
    if lost.any():
        raise UnsupportedSpec(
            f"{name}: {container} has float16 scales, which cannot hold {float(wide[lost][0]):g} exactly",
            hint="compressed-tensors keeps bfloat16 scales as they are",
        )
    return halves

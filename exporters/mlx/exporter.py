"""MLX: the folder that `mlx_lm.load`, `mlx_lm.generate` and `mlx_lm.server` take as it is.

    config.json          with `quantization` (`settings.py`), and the same as `quantization_config`, as mlx-lm writes it
    model*.safetensors   names of Hugging Face; metadata {"format": "mlx"}; a weight that is quantized in three parts
                         (`affine.py`), in codes of 2, 3, 4, 5, 6 or 8 bits and groups of 32, 64 or 128 columns

Embedding and head are quantized where they are in the source, all other weights dense in their own dtype. Wider groups
are split, 7 bits stored as 8; nothing is rounded. Types: `affine`, scales in their own dtype, or with biases in float32
where weights have zero points; `affine-f16`, both in float16, which rounds such biases; bf16, f16, f32, dense weights.

Floating-point codes (`floats.py`) are read, and written by the types `mxfp4` and `nvfp4`, or without a type where they
were read so; no run makes any, and integer codes are such only by their levels and scales. One bit is read as well;
mxfp8 is not.

mlx-lm follows few native MiniCPMs (`runtimes/_kernels/mlx.py`), so `--arch native` folds the others into a Llama.
Sources: mlx 0.32.4 `python/mlx/nn/layers/quantized.py`, `mlx/backend/cpu/quantized.cpp`; mlx-lm 0.32.2 `mlx_lm.utils`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from quantkit import registry
from quantkit.errors import InconsistentCheckpoint, UnsupportedModel, UnsupportedSpec
from quantkit.exporters._dense_folder import plan_dense_folder
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import (
    Layout,
    Shapes,
    architecture_of,
    checked_type,
    module_name,
    plan_folder,
    quantized_views,
    read_checkpoint,
)
from quantkit.exporters._mlx_mark import QUANTIZATION, holds_settings, is_mlx
from quantkit.exporters._plain_scales import with_plain_scales
from quantkit.exporters._widths import checked_bits, stored_wider
from quantkit.exporters.mlx import affine, floats
from quantkit.exporters.mlx.defaults import with_defaults
from quantkit.exporters.mlx.reading import taken_view, told_by_shapes
from quantkit.exporters.mlx.settings import AFFINE, BITS, FLOAT_MODES, Stored, read_settings, written_settings
from quantkit.exporters.mlx.text import chat_notes
from quantkit.files.planned_files import Buffer, PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_plain_heads
from quantkit.models.folder import open_folder
from quantkit.models.folding import folded
from quantkit.models.layouts.quantizers import refuse_quantized
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import parse_config, recognized
from quantkit.models.spec import NORM_ROLES
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOATS
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, Weight

NAME, HALVES = "mlx", "affine-f16"
COPY = "quantization_config"
"""Where mlx-lm says the same once more."""
MOVED = "largest_move_in_steps"


class MLX:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = NAME
    summary = "folder of mlx-lm, for Macs; affine codes of 2 to 8 bits, or dense"
    types = (AFFINE, HALVES, *FLOAT_MODES, *FLOATS)
    targets = ()
    widths = tuple(bits for bits in BITS if bits > 1)
    engines = ("mlx", "mlx-numpy", "reference")
    library = "mlx"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config has `quantization`, or whose dense weights MLX wrote."""
        return is_mlx(path)

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder; without a type, `affine` for sources with codes, else dense as the source is.

        A native MiniCPM that mlx-lm would not follow is folded; a note says why.

        Raises:
            BadOption: an unknown type, width or architecture.
            UnsupportedSpec: a weight that does not fit, by name; no weight with codes, for the types that want them.
        """
        check_plain_heads(checkpoint, NAME)
        refuse_block_options(options, container=NAME)
        refuse_graph_options(options, container=NAME)
        kind = checked_type(options.type, self.types, container=NAME)
        bits = checked_bits(options.bits, self.widths, container=NAME)
        if kind in FLOATS or (kind is None and not checkpoint.holds_codes):
            if bits is not None:
                raise UnsupportedSpec(
                    f"mlx: the weights of {checkpoint.path} become dense, there are no codes to store in {bits} bits",
                    hint="leave --bits out, or quantize first and choose the type affine",
                )
            arch, notes = _architecture(checkpoint, options.arch)
            return plan_dense_folder(
                checkpoint,
                type_name=kind,
                arch=arch,
                container=NAME,
                read=self.read,
                made_for=NAME,
                config_class=False,
                notes=(*notes, *chat_notes(checkpoint)),
            )
        if bits is not None and kind in FLOAT_MODES:
            raise UnsupportedSpec(f"mlx: {kind} of {checkpoint.path} has 4 bits", hint="leave --bits out")
        arch, notes = _architecture(_stored(checkpoint, kind, bits)[0], options.arch)
        source = architecture_of(checkpoint, replace(options, arch=arch), container=NAME)
        model, changed, told = _stored(source, kind, bits)
        halves, moved = kind == HALVES, dict[str, float]()
        return plan_folder(
            model,
            _layout(model, moved, halves=halves),
            written_settings({module_name(view.name): _how(view) for view in quantized_views(model)}),
            container=NAME,
            read=self.read,
            options={"type": kind or AFFINE, "arch": arch, **({"bits": bits} if bits else {})},
            notes=(*notes, *told, *chat_notes(checkpoint), *_parameter_notes(model, halves=halves)),
            stored=changed,
            keys=(QUANTIZATION, COPY),
            made_for=NAME,
            config_class=False,
            figures=lambda: {MOVED: moved} if moved else {},
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder, ours or mlx-lm's; codes are read through the views, scales and biases at once.

        Raises:
            BadConfig, UnsupportedSpec: settings that are not understood.
            InconsistentCheckpoint, IncompleteCheckpoint: tensors that contradict settings or each other.
        """
        folder = open_folder(path)
        where = str(path / CONFIG_NAME)
        family = recognized(folder.config, where=where).name
        config, notes = with_defaults(folder.config, family, where)
        spec = parse_config({key: value for key, value in config.items() if key != QUANTIZATION}, where=where)
        folder = replace(folder, config=config)
        if not holds_settings(config):
            refuse_quantized(config, folder.tensors, str(path))
            return read_checkpoint(folder, spec, folder.tensors, container=NAME, notes=notes)
        given = folder.config[QUANTIZATION]
        if folder.config.get(COPY) not in (None, given):
            raise InconsistentCheckpoint(
                f"{where}: {QUANTIZATION} and {COPY} differ; loaders take the one or the other"
            )
        slots = {module_name(slot.name): slot for slot in spec.slots() if slot.role not in NORM_ROLES}
        settings = read_settings(given, slots, f"{where}: {QUANTIZATION}")
        tensors, weights = dict(folder.tensors), dict[str, Weight]()
        for module, slot in slots.items():
            shapes = told_by_shapes(slot, module, tensors)
            how = settings.of(module, shapes) if shapes is not None else settings.modules.get(module)
            if how is not None:
                weights[slot.name] = taken_view(slot, how, tensors, str(path))
        if not weights:
            raise InconsistentCheckpoint(f"{where}: {QUANTIZATION} tells of quantized weights, and there are none")
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=NAME, notes=notes)


def _architecture(model: Checkpoint, asked: str) -> tuple[str, tuple[str, ...]]:
    """The architecture to write, and a note where it is not the one that was asked for.

    model: as it will lie there if it is native.
    """
    if asked != "native":
        return asked, ()
    refusal = _refusal(model)
    if refusal is not None:
        with suppress(UnsupportedModel):
            if _refusal(folded(model)) is None:
                return "llama", (
                    f"folded into a plain Llama, as --arch llama does; of it as it is mlx-lm says: {refusal}",
                )
    return asked, ()


def _refusal(model: Checkpoint) -> str | None:
    found = (kernel.verdict(replace(model, format=NAME)).refusal for kernel in registry.kernels(NAME))
    return next((refusal for refusal in found if refusal is not None), None)


def _stored(
    model: Checkpoint, kind: str | None, bits: int | None
) -> tuple[Checkpoint, dict[str, QuantizedView], tuple[str, ...]]:
    """`model` as MLX holds it, those of its weights that have another scheme now, and what to say of them."""
    wider = stored_wider(with_plain_scales(model), bits or min(MLX.widths), container=NAME, asked=bits is not None)
    views = {view.name: _fitting(view, kind) for view in quantized_views(wider.model)}
    changed = {name: view for name, view in views.items() if view is not model.weights[name]}
    return replace(wider.model, weights={**wider.model.weights, **views}), changed, wider.notes


def _fitting(view: QuantizedView, kind: str | None) -> QuantizedView:
    """`view` as floating-point codes where the type says so, or where it was read as such and no type is named."""
    mode = kind or (view.stored_as if isinstance(view.scheme, AffineGroups) else None)  # GGUF says mxfp4 as well
    if mode is not None and mode in FLOAT_MODES:
        return floats.fitting(view, mode)
    return affine.fitting(view if view.stored_as is None else replace(view, stored_as=None))


def _how(view: QuantizedView) -> Stored:
    return floats.stored(view.stored_as) if view.stored_as is not None else affine.stored(view.scheme)


def _layout(model: Checkpoint, moved: dict[str, float], *, halves: bool) -> Layout:
    """How the weights of `model` lie there; by how much rounded biases move a weight is noted in `moved`."""
    modes = {view.name: view.stored_as for view in quantized_views(model)}

    def shapes(view: QuantizedView) -> Shapes:
        if view.stored_as is not None:
            return floats.parts(view.shape, _how(view))
        dtype = affine.parameter_dtype(view.scheme, halves=halves)
        return affine.parts(view.shape, _how(view), (dtype, dtype))

    def buffers(name: str, tensor: QuantizedTensor) -> Iterator[Buffer]:
        mode = modes[name]
        if mode is not None:
            return floats.packed(name, tensor, mode)
        packed = affine.packed(name, tensor, affine.parameter_dtype(tensor.scheme, halves=halves))
        if packed.moved:
            moved[name] = packed.moved
        return iter(packed.buffers)

    return Layout(shapes, buffers)


def _parameter_notes(model: Checkpoint, *, halves: bool) -> Iterator[str]:
    free = [
        view.name
        for view in quantized_views(model)
        if isinstance(view.scheme, AffineGroups) and not view.scheme.symmetric
    ]
    if not free:
        return
    if halves:
        yield f"{len(free)} weights have zero points: scale * zero point is rounded to float16"
    else:
        yield (
            f"{len(free)} weights have zero points: their scales and biases are float32, which is exact, and mlx "
            "computes in float32 with them; type affine-f16 rounds them"
        )


EXPORTER = MLX()

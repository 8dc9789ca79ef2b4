"""Marlin: 4-bit symmetric weights in the order in which the kernel of Frantar et al. (2024) loads them.

Per matrix P of N rows and K columns, G groups per row, codes q of 0 .. 15:

    P.qweight (P.B for ist)   int32 [K / 16, 2 N]   `quantkit.tensors.packing.pack_marlin` of the codes
    P.scales  (P.s for ist)   float16 [G, N]        permuted within runs of 64 (G > 1) or 32 (G = 1) along N
    weight = scale * (q - 8)

cpm.cu   What CPM.cu loads. q, k and v of a block are one matrix `self_attn.qkv_proj`, gate and up another,
         `mlp.gate_up_proj`, side by side along N before the codes are ordered. K and N are multiples of 64, one of
         them of 128; groups of 128 or one per row. One file `model_gptq.safetensors`, or, beyond the size of a shard,
         shards and the only `*.safetensors.index.json` in the folder. The folder's name must hold a word that says
         "quantized" to CPM.cu. The engine's own converter copies OpenBMB's code and every tokenizer file beside the
         weights; the loader itself needs config.json, the config class and the tokenizer, which is what is written.
ist      The checkpoint of IST-DASLab's kernel, also loaded by AutoGPTQ, and by vLLM before it dropped it. Every layer
         by itself; K is a multiple of 128, N of 256. `quantize_config.json` repeats the settings.

Symmetric codes of fewer bits, ternary ones among them, are stored as 4 bits.

Embedding, head and norms are dense float16 or bfloat16, as the source has them; float32 becomes float16, which is
what both engines run in by default. CPM.cu casts scales to the dtype that it runs in: with `--dtype float16` it
computes with the very values of the file. Source: IST-DASLab `marlin/__init__.py`; CPM.cu
`scripts/model_convert/gptq2marlin.py`, `cpmcu/llm_w4a16_gptq_marlin.py`, `src/qgemm/gptq_marlin/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption, IncompleteCheckpoint, QuantkitError
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_config import config_files, with_dtype
from quantkit.exporters._hf_folder import architecture_of, check_fused, read_checkpoint
from quantkit.exporters._recorded import measured
from quantkit.exporters._widths import checked_bits, recorded_options, stored_wider
from quantkit.exporters.marlin.matrices import (
    Matrix,
    buffers,
    check_shape,
    matrices,
    taken,
    uniform_grid,
)
from quantkit.exporters.marlin.targets import (
    BITS,
    CPM_CU,
    CPM_CU_FILES,
    CPM_CU_STEM,
    IST,
    NAME,
    NAME_KEYWORDS,
    TARGETS,
    Target,
    check_rope,
    chosen,
    described,
    notes_on,
    quantization_config,
    read_grid,
    says_marlin,
    written_config,
)
from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedFile, PlannedTensor, blob
from quantkit.files.safetensors_header import TensorEntry
from quantkit.files.safetensors_writer import TensorUnit, plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_plain_heads
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import parse_config
from quantkit.models.spec import BLOCKS
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOAT16, FLOAT32, converted
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight

Item = Matrix | TensorView
"""What lies in the folder: a matrix of the blocks, or a dense tensor."""


class Marlin:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = NAME
    summary = "Hugging Face folder in the order of the Marlin kernel, 4 bits, for CPM.cu or IST-DASLab's own"
    types = ()
    targets = tuple(TARGETS)
    widths = (BITS,)
    engines = ("reference",)
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config.json, or a file name of CPM.cu's, tells of Marlin's order."""
        try:
            settings = described(read_folder_config(path))
        except QuantkitError:
            return False
        named = any((path / name).is_file() for name in CPM_CU_FILES)
        return settings is not None and (named or says_marlin(settings))

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block.

        Raises:
            BadOption: a type, or an unknown target, width or architecture.
            UnsupportedSpec: a weight or a rotary embedding that does not fit. Also while writing: a bfloat16 scale
                that float16 does not hold.
        """
        check_plain_heads(checkpoint, NAME)
        if options.type is not None:
            raise BadOption(f"{NAME} has no type {options.type!r}", hint="leave it out")
        target = chosen(options.target)
        refuse_block_options(options, container=NAME)
        refuse_graph_options(options, container=NAME)
        checked_bits(options.bits, self.widths, container=NAME)
        wider = stored_wider(architecture_of(checkpoint, options, container=NAME), BITS, container=NAME)
        model = wider.model
        check_fused(model, container=NAME)
        spec = uniform_grid(model)
        check_rope(model, target)
        blocks = matrices(model.spec, target)
        for matrix in blocks:
            check_shape(matrix, spec)
        dense = [_in_16_bits(weight) for weight in model.weights.values() if isinstance(weight, TensorView)]
        parts: list[Matrix | TensorView] = [*dense, *blocks]
        config = with_dtype(written_config(model, target, spec.group_size), dense[0].dtype)
        return PlannedArtifact(
            format=self.name,
            folder=True,
            files=(
                *config_files(model.spec, config),
                *_weight_files(_units(model, spec, [*dense, *blocks]), target, spec),
                *(blob(name, read()) for name, read in sorted(model.files.items())),
            ),
            tensors=tuple(_planned(item, spec) for item in parts),
            options={"target": target.name, **recorded_options(options)},
            notes=(*model.notes, *wider.notes, *notes_on(model.spec, target)),
            stored=wider.changed,
            measure=measured(model, self.read, threads=options.threads),
            name_keywords=NAME_KEYWORDS if target is CPM_CU else (),
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder, ours or another's; q, k, v, gate and up are each a weight of their own again.

        Raises:
            UnsupportedSpec: settings that are not Marlin's.
            InconsistentCheckpoint, IncompleteCheckpoint: tensors that contradict the config or each other.
        """
        folder = open_folder(path)
        where = str(path / CONFIG_NAME)
        spec = parse_config(folder.config, where=where)
        settings = described(folder.config)
        if settings is None:
            raise IncompleteCheckpoint(f"{where}: there is no quantization_config of a {NAME} folder")
        grid = read_grid(settings, f"{where}: quantization_config")
        tensors = dict(folder.tensors)
        target = IST if any(name.endswith(f".{IST.words}") for name in tensors) else CPM_CU
        weights: dict[str, Weight] = {}
        for matrix in matrices(spec, target):
            weights.update(taken(matrix, grid, tensors, str(path)))
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=self.name)


def _in_16_bits(view: TensorView) -> TensorView:
    """A dense tensor in its own dtype, if that has 16 bits, else in float16; values that are not finite are refused."""
    dtype = FLOAT16 if view.dtype == FLOAT32 else view.dtype
    row_size = view.size // max(1, view.rows)

    def fetch(start: int, stop: int) -> np.ndarray:
        return converted(view.name, view.fetch(start, stop), dtype, offset=start * row_size)

    return TensorView(view.name, dtype, view.shape, fetch)


def _units(model: Checkpoint, spec: AffineGroups, items: Sequence[Item]) -> list[TensorUnit]:
    """Embedding, every block, final norm and head as one unit each, so that a block is written whole or not."""
    layers = {slot.name: slot.layer for slot in model.spec.slots()}
    units: dict[str, list[Item]] = {
        slot.name if slot.layer is None else f"{BLOCKS}{slot.layer}": [] for slot in model.spec.slots()
    }
    for item in items:
        layer = item.layer if isinstance(item, Matrix) else layers[item.name]
        units[item.name if layer is None else f"{BLOCKS}{layer}"].append(item)
    return [
        TensorUnit(name, tuple(entry for item in held for entry in _entries(item, spec)), _producer(held, model))
        for name, held in units.items()
    ]


def _entries(item: Item, spec: AffineGroups) -> list[TensorEntry]:
    if isinstance(item, TensorView):
        return [TensorEntry(item.name, item.dtype, item.shape)]
    return [TensorEntry(f"{item.name}.{part}", dtype, shape) for part, (dtype, shape) in item.parts(spec).items()]


def _producer(items: Sequence[Item], model: Checkpoint) -> Callable[[], Iterator[Buffer]]:
    def produce() -> Iterator[Buffer]:
        for item in items:
            if isinstance(item, TensorView):
                yield from item.chunks()
            else:
                weights = [model.weights[slot.name] for slot in item.slots]
                yield from buffers(item, [weight for weight in weights if isinstance(weight, QuantizedView)])

    return produce


def _planned(item: Item, spec: AffineGroups) -> PlannedTensor:
    kind = str(item.dtype) if isinstance(item, TensorView) else str(spec)
    return PlannedTensor(item.name, kind, item.shape, sum(entry.nbytes for entry in _entries(item, spec)))


def _weight_files(units: Sequence[TensorUnit], target: Target, spec: AffineGroups) -> tuple[PlannedFile, ...]:
    """The weights, under the names that the target's loaders look for."""
    if target is IST:
        text = json.dumps(quantization_config(spec.group_size), indent=2, sort_keys=True) + "\n"
        return (blob("quantize_config.json", text.encode()), *plan_safetensors(units))
    files = plan_safetensors(units, stem=CPM_CU_STEM)
    # With an index CPM.cu follows it whatever it is called; other readers know only the usual name.
    return files if len(files) == 1 else plan_safetensors(units)


EXPORTER = Marlin()

"""A dense Hugging Face folder: what transformers loads, and what every other tool starts from.

    config.json                    the source's own, defaults spoken out; or the folded Llama's
    configuration_minicpm.py       beside the former: the config class, which vLLM needs
    model.safetensors              every weight in one float dtype, [out, in] row by row, in the order of the forward
                                   pass; or shards model-0000I-of-0000N.safetensors and model.safetensors.index.json
    tokenizer*, *.jinja, ...       as they were

Types: bf16, f16, f32. A quantized weight is written as the values that it stands for, rounded once to that type; where
that changes any, the manifest's figure `ROUNDED` says by how much of a value at most. Ternary weights whose scales are
bfloat16 are exact in bf16: so BitCPM's own checkpoints hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from quantkit.errors import BadOption, QuantkitError
from quantkit.exporters._graph_options import refuse_graph_options
from quantkit.exporters._hf_config import config_files, native_config, with_dtype
from quantkit.exporters._hf_folder import read_checkpoint
from quantkit.exporters._recorded import measured
from quantkit.exporters._widths import checked_bits
from quantkit.files.planned_files import Buffer, PlannedArtifact, PlannedTensor, blob
from quantkit.files.safetensors_header import TensorEntry
from quantkit.files.safetensors_writer import TensorUnit, plan_safetensors
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.folding import with_architecture, with_source_dtypes
from quantkit.models.layouts.quantizers import refuse_quantized
from quantkit.models.layouts.small_files import CONFIG_NAME, file_names
from quantkit.models.recognition import parse_config
from quantkit.models.spec import EMBEDDING
from quantkit.protocols import ExportOptions
from quantkit.tensors.cast import FLOATS, converted
from quantkit.tensors.views import QuantizedView, TensorView, Weight

ROUNDED = "largest_rounding"


class HuggingFace:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = "hf"
    summary = "Hugging Face folder with dense weights"
    types = tuple(FLOATS)
    targets = ()
    widths = ()
    engines = ("transformers", "vllm", "reference")

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder with weights that no `quantization_config` describes.

        A folder whose config cannot be read, or that holds pickles only, is recognized as well, because `read`
        says best what is wrong with it.
        """
        try:
            names = file_names(path)
        except BadOption:
            return False
        if not any(name.endswith((".safetensors", ".safetensors.index.json")) or _is_pickle(name) for name in names):
            return False
        try:
            config = read_folder_config(path)
        except QuantkitError:
            return True
        return not config.get("quantization_config")

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per tensor.

        Without a type, dense sources keep the dtype of each tensor and quantized ones become bf16.

        Raises:
            BadOption: an unknown type or architecture, or a width.
        """
        if options.type not in (None, *self.types):
            raise BadOption(f"hf has no type {options.type!r}", hint=f"choose one of: {', '.join(self.types)}")
        refuse_graph_options(options, container=self.name)
        checked_bits(options.bits, self.widths, container=self.name)
        model = with_architecture(checkpoint, options.arch)
        type_name = "bf16" if options.type is None and model.holds_codes else options.type
        if type_name is None and model is not checkpoint:
            model = with_source_dtypes(model, checkpoint)
        rounded: dict[str, float] = {}
        entries = [_entry(weight, type_name) for weight in model.weights.values()]
        units = [
            TensorUnit(entry.name, (entry,), _producer(weight, entry.dtype, rounded))
            for entry, weight in zip(entries, model.weights.values(), strict=True)
        ]
        embedding = next(entry for entry in entries if entry.name == EMBEDDING)
        return PlannedArtifact(
            format=self.name,
            folder=True,
            files=(
                *config_files(model.spec, with_dtype(native_config(model), embedding.dtype)),
                *plan_safetensors(units),
                *(blob(name, read()) for name, read in sorted(model.files.items())),
            ),
            tensors=tuple(PlannedTensor(e.name, _type_name(e.dtype), e.shape, e.nbytes) for e in entries),
            options={"type": type_name or _common_type(entries), "arch": options.arch},
            notes=model.notes,
            measure=measured(model, self.read),
            figures=lambda: {ROUNDED: rounded} if rounded else {},
        )

    def read(self, path: Path) -> Checkpoint:
        """Open a dense folder, ours or another's.

        Raises:
            UnsupportedModel: the config, or a tensor, says that the weights are quantized.
            IncompleteCheckpoint, InconsistentCheckpoint and others: see `open_folder` and `read_checkpoint`.
        """
        folder = open_folder(path)
        refuse_quantized(folder.config, folder.tensors, str(path))
        spec = parse_config(folder.config, where=str(path / CONFIG_NAME))
        wanted = {slot.name for slot in spec.slots()}
        unused = [name for name in folder.tensors if name not in wanted]
        surplus = (f"{len(unused)} tensors add nothing and are left out: {', '.join(unused)[:80]}",) if unused else ()
        return read_checkpoint(folder, spec, folder.tensors, container=self.name, notes=surplus)


def _is_pickle(name: str) -> bool:
    return name.startswith("pytorch_model") and name.endswith(".bin")


def _type_name(dtype: np.dtype) -> str:
    return next(name for name, known in FLOATS.items() if known == dtype)


def _common_type(entries: Sequence[TensorEntry]) -> str:
    dtypes = {entry.dtype for entry in entries}
    return _type_name(dtypes.pop()) if len(dtypes) == 1 else "mixed"


def _entry(weight: Weight, type_name: str | None) -> TensorEntry:
    if type_name is None and isinstance(weight, TensorView):
        return TensorEntry(weight.name, weight.dtype, weight.shape)
    return TensorEntry(weight.name, FLOATS[type_name or "bf16"], weight.shape)


def _producer(weight: Weight, dtype: np.dtype, rounded: dict[str, float]) -> Callable[[], Iterator[Buffer]]:
    """The values of `weight` as `dtype`; what rounding codes to it changes is noted in `rounded`."""

    def produce() -> Iterator[Buffer]:
        position = 0
        for chunk in weight.chunks() if isinstance(weight, TensorView) else weight.dequantized_chunks():
            values = converted(weight.name, chunk, dtype, offset=position)
            if isinstance(weight, QuantizedView) and (change := _largest_change(chunk, values)):
                rounded[weight.name] = max(change, rounded.get(weight.name, 0.0))
            yield values
            position += chunk.size

    return produce


def _largest_change(exact: np.ndarray, rounded: np.ndarray) -> float:
    """The largest difference relative to an element of `exact`, float32."""
    wide = rounded.astype(np.float32)
    changed = wide != exact
    return float(np.max(np.abs(wide[changed] - exact[changed]) / np.abs(exact[changed]), initial=0.0))


EXPORTER = HuggingFace()

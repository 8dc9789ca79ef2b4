"""GPTQ: the folder that vLLM, GPTQModel, AutoGPTQ, SGLang and transformers (through GPTQModel) load.

Per quantized module P of N rows, K columns and G groups per row, b bits; codes q and zero points z are 0 .. 2**b - 1:

    P.qweight  int32 [K*b/32, N]   per output n one bitstream down the column, code k at bit k*b, lowest bit first
    P.qzeros   int32 [G, N*b/32]   the same along each row, of z - 1 (type v1) or z (type v2)
    P.g_idx    int32 [K]           group of input k; k // group size here
    P.scales   float16 [G, N]
    weight[n, k] = scales[g, n] * (q - z), g = g_idx[k]

For 2, 4 and 8 bits that is nibble k % 8 (and so on) of word k // 8; for 3 bits it is 32 codes in 3 words. Ternary
weights are plain codes of 2 bits, 1 to 3.

v1 (`checkpoint_format: gptq`, what every loader reads) is written for symmetric grids only: z - 1 is negative for a
zero point of 0, writers disagree on what that becomes (a borrow from the next field, or all ones in every field
above), and loaders refuse asymmetric v1 files that they do not know the writer of. v2 (`gptq_v2`) has neither
trouble. v1 is read the way it is added back: whole words for 2, 4 and 8 bits, field by field for 3.

Embedding and head are dense (quantized ones of the source become float32 values). `config.json` holds the settings
in `quantization_config`, `quantize_config.json` the same for older loaders. Sources: package GPTQModel 7.7.0,
`nn_modules/qlinear/__init__.py`, `utils/model.py`; vLLM 0.32.0, `quantization/auto_gptq.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from quantkit.errors import IncompleteCheckpoint, InconsistentCheckpoint, QuantkitError, UnsupportedSpec
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import (
    Layout,
    Shapes,
    architecture_of,
    check_fused,
    checked_type,
    float16_scales,
    module_name,
    plan_folder,
    quantized_views,
    read_checkpoint,
)
from quantkit.exporters._widths import checked_bits, recorded_options, stored_wider
from quantkit.exporters.gptq.config import BITS, METHOD, quantization_config, read_settings, settings_of
from quantkit.exporters.gptq.order import LatestRead
from quantkit.exporters.gptq.reading import QWEIGHT, WORD, part_shapes, taken_weight
from quantkit.files.planned_files import Buffer, PlannedArtifact, blob
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.context import check_plain_heads
from quantkit.models.folder import open_folder
from quantkit.models.layouts.small_files import CONFIG_NAME
from quantkit.models.recognition import parse_config
from quantkit.protocols import ExportOptions
from quantkit.tensors.packing import pack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, TensorView, Weight

GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024, PER_ROW)
"""Those that GPTQModel has kernels for; vLLM takes 32, 64, 128 and rows."""
STEP = 32
"""Rows and columns are multiples of it: every loader's kernels ask for that."""


class GPTQ:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = METHOD
    summary = "Hugging Face folder in the layout of GPTQModel and AutoGPTQ"
    types = ("v1", "v2")
    targets = ()
    widths = BITS
    engines = ("vllm", "reference")
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose config.json, or quantize_config.json, describes such weights."""
        try:
            return settings_of(path) is not None
        except QuantkitError:
            return False

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block, dense weights in the dtype that the source has them in.

        Without a type it is v1 when every grid is symmetric, else v2.

        Raises:
            BadOption: an unknown type, width or architecture.
            UnsupportedSpec: a weight that does not fit; names it. Also while writing: a bfloat16 scale that float16
                does not hold.
        """
        check_plain_heads(checkpoint, METHOD)  # vLLM takes its q_a_proj for dense
        wanted = checked_type(options.type, self.types, container=METHOD)
        refuse_block_options(options, container=METHOD)
        refuse_graph_options(options, container=METHOD)
        bits = checked_bits(options.bits, self.widths, container=METHOD)
        source = architecture_of(checkpoint, options, container=METHOD, linears_only=True)
        wider = stored_wider(source, bits or min(BITS), container=METHOD, asked=bits is not None, linears_only=True)
        model = wider.model
        quantized = quantized_views(model, linears_only=True)
        schemes = {weight.name: affine(weight.name, weight.scheme, container=METHOD) for weight in quantized}
        for weight in quantized:
            _check_scheme(weight.name, schemes[weight.name], wanted)
            _check_shape(weight)
        check_fused(model, container=METHOD)
        kind = wanted or ("v1" if all(scheme.symmetric for scheme in schemes.values()) else "v2")
        config = quantization_config(model, kind)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        return plan_folder(
            model,
            Layout(_shapes, lambda name, tensor: _buffers(name, tensor, kind), linears_only=True),
            config,
            container=METHOD,
            read=self.read,
            options={"type": kind, **recorded_options(options)},
            files=(blob("quantize_config.json", text.encode()),),
            notes=(*wider.notes, *_notes(schemes.values())),
            stored=wider.changed,
        )

    def read(self, path: Path) -> Checkpoint:
        """Open such a folder, ours or another's; codes are read through the views.

        Bits and groups of every module follow from the shapes of its tensors, so settings per module need not be
        evaluated. Columns in activation order are taken where their groups are contiguous, or become so when the
        groups are divided; other weights are read as dense float32, and a note says so.

        Raises:
            BadConfig, UnsupportedSpec: settings that are not understood.
            InconsistentCheckpoint, IncompleteCheckpoint: tensors that contradict settings or each other.
        """
        folder = open_folder(path)
        where = str(path / CONFIG_NAME)
        spec = parse_config(folder.config, where=where)
        found = settings_of(path, folder.config)
        if found is None:
            raise IncompleteCheckpoint(f"{where}: there are no settings of method {METHOD}")
        settings = read_settings(found, f"{where}: quantization_config")
        tensors = dict(folder.tensors)
        weights: dict[str, Weight] = {}
        latest = LatestRead()
        for slot in spec.slots():
            if f"{module_name(slot.name)}.{QWEIGHT}" in tensors:
                weights[slot.name] = taken_weight(slot, settings, tensors, latest, str(path))
        if not weights:
            raise InconsistentCheckpoint(f"{path}: the config says gptq, but no weight is quantized")
        dense = [name for name, weight in weights.items() if isinstance(weight, TensorView)]
        note = (
            f"{len(dense)} tensors ({dense[0]} ...) have the columns of a group scattered (act-order without static "
            "groups); they are read as float32, and no container with contiguous groups can hold their codes"
            if dense
            else ""
        )
        notes = [note] if note else []
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=self.name, notes=notes)


def _check_scheme(name: str, spec: AffineGroups, kind: str | None) -> None:
    problem = ""
    if spec.bits not in BITS:
        problem = f"{METHOD} holds {', '.join(map(str, BITS[:-1]))} and {BITS[-1]} bits"
    elif spec.group_size not in GROUP_SIZES:
        problem = f"{METHOD} has groups of {', '.join(map(str, GROUP_SIZES[:-1]))}, or one per row"
    elif spec.scale_dtype == "float32":
        problem = f"{METHOD} has float16 scales"
    if problem:
        wider = spec.symmetric and spec.bits not in BITS
        raise UnsupportedSpec(
            f"{name}: {problem}; this is {spec} with {spec.scale_dtype} scales",
            hint="store it in wider codes with --bits 8" if wider else "compressed-tensors holds it",
        )
    if kind == "v1" and not spec.symmetric:
        raise UnsupportedSpec(
            f"{name}: {METHOD} v1 stores zero points less one, which {spec} with a zero point of 0 does not survive",
            hint="choose type v2",
        )


def _check_shape(weight: QuantizedView) -> None:
    rows, cols = weight.shape
    if rows % STEP or cols % STEP:
        raise UnsupportedSpec(
            f"{weight.name} is {rows} x {cols}; {METHOD} kernels take multiples of {STEP} on both sides",
            hint="keep this tensor dense, or choose compressed-tensors or gguf",
        )
    weight.scheme.groups(cols, name=weight.name)


def _notes(schemes: Iterable[AffineGroups]) -> Iterator[str]:
    odd = [scheme for scheme in schemes if scheme.bits not in (4, 8) or not scheme.symmetric]
    if odd:
        way_out = "; --bits 4 stores the same numbers for it" if all(scheme.symmetric for scheme in odd) else ""
        names = ", ".join(sorted({str(scheme) for scheme in odd}))
        yield f"{names}: GPTQModel loads it; vLLM takes symmetric 4 and 8 bits only{way_out}"


def _shapes(view: QuantizedView) -> Shapes:
    rows, cols = view.shape
    groups = view.scheme.groups(cols, name=view.name)
    return part_shapes(rows, cols, groups, view.scheme.bits, np.dtype("<f2"))


def _buffers(name: str, tensor: QuantizedTensor, kind: str) -> Iterator[Buffer]:
    bits, cols = tensor.scheme.bits, tensor.shape[1]
    scale = float16_scales(name, tensor, container=METHOD)
    stored = tensor.zero - np.uint8(1) if kind == "v1" else tensor.zero
    yield np.ascontiguousarray(pack_bitstream(tensor.codes, bits).T)
    yield pack_bitstream(np.ascontiguousarray(stored.T), bits)
    yield (np.arange(cols) // tensor.scheme.group_width(cols)).astype(WORD)
    yield np.ascontiguousarray(scale.T)


EXPORTER = GPTQ()

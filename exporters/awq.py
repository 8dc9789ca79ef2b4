"""AWQ in the GEMM layout: the folder that vLLM, AutoAWQ, GPTQModel, SGLang and mlx-lm load. Four bits only.

Per quantized module P of N rows, K columns and G groups per row; codes q and zero points z are 0 .. 15:

    P.qweight  int32 [K, N/8]   eight outputs a word: nibble i of word [k, c] is the code of output 8 c + ORDER[i]
    P.qzeros   int32 [G, N/8]   the same of zero points, as they are
    P.scales   float16 [G, N]
    weight[n, k] = scales[g, n] * (q - z), g = k // group size; ORDER = 0 2 4 6 1 3 5 7

Symmetric codes of fewer bits, ternary ones among them, are stored as 4 bits. A symmetric grid has z = 8 everywhere,
and is read back as one for that. All quantized layers share one group size; embedding and head are dense (quantized
ones of the source become float32 values). N is a multiple of 32: AutoAWQ's packer makes buffers of N // 32 * 4 words.
Sources: package autoawq 0.2.9, `modules/linear/gemm.py`, `utils/packing_utils.py`; vLLM 0.32.0, `auto_awq.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import (
    BadConfig,
    IncompleteCheckpoint,
    InconsistentCheckpoint,
    QuantkitError,
    UnsupportedSpec,
)
from quantkit.exporters._graph_options import refuse_block_options, refuse_graph_options
from quantkit.exporters._hf_folder import (
    Layout,
    Shapes,
    architecture_of,
    check_fused,
    checked_type,
    drop_zero_bias,
    float16_scales,
    module_name,
    module_schemes,
    named_tensor,
    plan_folder,
    quantized_views,
    read_checkpoint,
    taken_parts,
)
from quantkit.exporters._widths import checked_bits, recorded_options, stored_wider
from quantkit.files.member import read_member_json
from quantkit.files.planned_files import Buffer, PlannedArtifact
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import open_folder, read_folder_config
from quantkit.models.layouts.small_files import CONFIG_NAME, MAX_CONFIG_BYTES
from quantkit.models.recognition import parse_config
from quantkit.models.spec import BLOCKS, Role, TensorSlot
from quantkit.protocols import ExportOptions
from quantkit.tensors.packing import pack_bitstream, unpack_bitstream
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import MAX_GROUP_SIZE, PER_ROW, SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView, TensorView, Weight

METHOD, FORMAT = "awq", "gemm"
SETTINGS_NAMES = ("quant_config.json", "quantize_config.json")
"""Where older AutoAWQ has its settings."""

BITS = 4
GROUP_SIZES = (32, 64, 128, PER_ROW)
ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
PER_WORD, STEP = 8, 32

QWEIGHT, QZEROS, SCALES = "qweight", "qzeros", "scales"
WORD = np.dtype("<i4")


class AWQ:
    """See the module's docstring; the attributes are those of `quantkit.protocols.Exporter`."""

    name = METHOD
    summary = "Hugging Face folder in AutoAWQ's GEMM layout, 4 bits"
    types = (FORMAT,)
    targets = ()
    widths = (BITS,)
    engines = ("vllm", "reference")
    library = "transformers"

    def recognizes(self, path: Path) -> bool:
        """Whether `path` is a folder whose settings name this method."""
        try:
            return _settings(path, read_folder_config(path)) is not None
        except QuantkitError:
            return False

    def prepare(self, checkpoint: Checkpoint, options: ExportOptions) -> PlannedArtifact:
        """Plan the folder: one unit per block, dense weights in the dtype that the source has them in.

        Raises:
            BadOption: an unknown type, width or architecture.
            UnsupportedSpec: a weight that does not fit; names it. Also while writing: a bfloat16 scale that float16
                does not hold.
        """
        checked_type(options.type, self.types, container=METHOD)
        refuse_block_options(options, container=METHOD)
        refuse_graph_options(options, container=METHOD)
        checked_bits(options.bits, self.widths, container=METHOD)
        source = architecture_of(checkpoint, options, container=METHOD, linears_only=True)
        wider = stored_wider(source, BITS, container=METHOD, linears_only=True)
        model = wider.model
        quantized = quantized_views(model, linears_only=True)
        for weight in quantized:
            _check_scheme(weight.name, affine(weight.name, weight.scheme, container=METHOD))
            _check_shape(weight, quantized[0])
        check_fused(model, container=METHOD)
        return plan_folder(
            model,
            Layout(_shapes, _buffers, linears_only=True),
            _quantization_config(model, quantized[0].scheme.group_size),
            container=METHOD,
            read=self.read,
            options={"type": FORMAT, **recorded_options(options)},
            notes=wider.notes,
            stored=wider.changed,
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
        settings = _settings(path, folder.config)
        if settings is None:
            raise IncompleteCheckpoint(f"{where}: there is no quantization_config of method {METHOD}")
        group_size = _read_group_size(settings, f"{where}: quantization_config")
        tensors = dict(folder.tensors)
        weights: dict[str, Weight] = {}
        for slot in spec.slots():
            if f"{module_name(slot.name)}.{QWEIGHT}" in tensors:
                weights[slot.name] = _taken(slot, group_size, tensors, str(path))
        if not weights:
            raise InconsistentCheckpoint(f"{path}: the config says {METHOD}, but no weight is quantized")
        return read_checkpoint(folder, spec, {**tensors, **weights}, container=self.name)


def _check_scheme(name: str, spec: AffineGroups) -> None:
    problem = ""
    if spec.bits != BITS:
        problem = f"{METHOD} holds {BITS} bits only"
    elif spec.group_size not in GROUP_SIZES:
        problem = f"{METHOD} has groups of {', '.join(map(str, GROUP_SIZES[:-1]))}, or one per row"
    elif spec.scale_dtype == "float32":
        problem = f"{METHOD} has float16 scales"
    if problem:
        raise UnsupportedSpec(
            f"{name}: {problem}; this is {spec} with {spec.scale_dtype} scales", hint="compressed-tensors holds it"
        )


def _check_shape(weight: QuantizedView, first: QuantizedView) -> None:
    rows, cols = weight.shape
    if rows % STEP:
        raise UnsupportedSpec(
            f"{weight.name} has {rows} rows; {METHOD} packers take multiples of {STEP}",
            hint="keep this tensor dense, or choose compressed-tensors or gguf",
        )
    if weight.scheme.group_size != first.scheme.group_size:
        raise UnsupportedSpec(
            f"{weight.name} is {weight.scheme} and {first.name} {first.scheme}; {METHOD} has one group size for all",
            hint="compressed-tensors and gptq take several",
        )
    weight.scheme.groups(cols, name=weight.name)


def _quantization_config(model: Checkpoint, group_size: int) -> dict[str, Any]:
    """With layers to leave alone only where some are dense besides embedding and head, which loaders know of."""
    specs = module_schemes(model, container=METHOD)
    dense = [module for module, spec in specs.items() if spec is None and module.startswith(BLOCKS)]
    return {
        "bits": BITS,
        "group_size": group_size,
        "modules_to_not_convert": [*dense, "lm_head"] if dense else None,
        "quant_method": METHOD,
        "version": FORMAT,
        "zero_point": True,
    }


def _shapes(view: QuantizedView) -> Shapes:
    rows, cols = view.shape
    return _parts(rows, cols, view.scheme.groups(cols, name=view.name), np.dtype("<f2"))


def _parts(rows: int, cols: int, groups: int, scale_dtype: np.dtype) -> Shapes:
    return {
        QWEIGHT: (WORD, (cols, rows // PER_WORD)),
        QZEROS: (WORD, (groups, rows // PER_WORD)),
        SCALES: (scale_dtype, (groups, rows)),
    }


def _buffers(name: str, tensor: QuantizedTensor) -> Iterator[Buffer]:
    scale = float16_scales(name, tensor, container=METHOD)
    yield _packed(tensor.codes)
    yield _packed(tensor.zero)
    yield np.ascontiguousarray(scale.T)


def _packed(codes: np.ndarray) -> np.ndarray:
    """Codes (rows, n) as words (n, rows // 8).

    Eight rows become words before anything is transposed: a fifth of the time that turning single codes takes.
    """
    rows, count = codes.shape
    eights = codes.reshape(rows // PER_WORD, PER_WORD, count)[:, ORDER].transpose(0, 2, 1)
    words = pack_bitstream(np.ascontiguousarray(eights).reshape(-1, PER_WORD), BITS)
    return np.ascontiguousarray(words.reshape(-1, count).T)


def _unpacked(words: np.ndarray) -> np.ndarray:
    """Inverse of `_packed`: uint8 (rows, n)."""
    count, width = words.shape
    single = np.ascontiguousarray(words.T).reshape(-1, 1)
    eights = unpack_bitstream(single, BITS, PER_WORD).reshape(width, count, PER_WORD).transpose(0, 2, 1)
    return np.ascontiguousarray(eights)[:, np.argsort(ORDER)].reshape(-1, count)


def _settings(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the folder `path`, None when they are not those of an AWQ model."""
    settings = config.get("quantization_config")
    if settings is None:
        for name in SETTINGS_NAMES:
            if (path / name).is_file():
                settings = read_member_json(path, name, limit=MAX_CONFIG_BYTES)
                return settings if settings.get("quant_method", METHOD) == METHOD and "version" in settings else None
    return settings if isinstance(settings, Mapping) and settings.get("quant_method") == METHOD else None


def _read_group_size(settings: Mapping[str, Any], where: str) -> int:
    """The only number that is free; everything else must be as this container has it."""
    version = settings.get("version", FORMAT)
    if not isinstance(version, str) or version.lower() != FORMAT:
        raise UnsupportedSpec(f"{where}: version {str(version)[:80]!r} is not supported; only {FORMAT}")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != BITS or type(bits) is not int:
        raise UnsupportedSpec(f"{where}: bits {str(bits)[:80]!r} is not supported; only {BITS}")
    if settings.get("zero_point", True) is not True:
        raise UnsupportedSpec(f"{where}: zero_point {str(settings['zero_point'])[:80]!r} is not supported; only true")
    group_size = settings.get("group_size", settings.get("q_group_size"))
    if type(group_size) is not int or not (group_size == PER_ROW or 1 <= group_size <= MAX_GROUP_SIZE):
        raise BadConfig(f"{where}: group_size must be -1 or positive, is {str(group_size)[:80]!r}")
    return group_size


def _taken(slot: TensorSlot, group_size: int, tensors: dict[str, TensorView], where: str) -> QuantizedView:
    """The weight of `slot`, whose parts are removed from `tensors` after every dtype and shape has been checked."""
    module = module_name(slot.name)
    if slot.role is Role.EMBED:
        raise UnsupportedSpec(f"{where}: {slot.name} is quantized; {METHOD} keeps embeddings dense")
    if slot.name in tensors:
        raise InconsistentCheckpoint(f"{where}: {slot.name} is there dense and quantized")
    names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
    scales = tensors.get(f"{module}.{SCALES}")
    scale_dtype = scales.dtype if scales is not None and scales.dtype in names else np.dtype("<f2")
    spec = AffineGroups(bits=BITS, group_size=group_size, scale_dtype=names[scale_dtype])
    rows, cols = slot.shape
    shapes = _parts(rows, cols, spec.groups(cols, name=f"{where}: {slot.name}"), scale_dtype)
    parts = taken_parts(tensors, module, shapes, where=where, grid_name=f"{spec} of {rows} x {cols}")
    drop_zero_bias(tensors, module, where)
    symmetric = bool((_unpacked(parts[QZEROS].read()) == spec.midpoint).all())
    spec = AffineGroups(bits=BITS, group_size=group_size, symmetric=symmetric, scale_dtype=spec.scale_dtype)
    return QuantizedView(slot.name, (rows, cols), spec, lambda: _tensor(slot.name, spec, parts))


def _tensor(name: str, spec: AffineGroups, parts: Mapping[str, TensorView]) -> QuantizedTensor:
    scale = np.ascontiguousarray(parts[SCALES].read().T)
    return named_tensor(name, spec, _unpacked(parts[QWEIGHT].read()), scale, _unpacked(parts[QZEROS].read()))


EXPORTER = AWQ()

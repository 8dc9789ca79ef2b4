"""The settings of a GPTQ folder: `quantization_config` in config.json, and the same in quantize_config.json.

    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "lm_head": false,
     "checkpoint_format": "gptq", "pack_dtype": "int32", "dynamic": {...}, ...}

`dynamic` holds exceptions: a regular expression that the start of a module's name must match, after "+:" for other
settings or "-:" for a dense layer; the first that matches counts. GPTQModel matches the names of the checkpoint,
vLLM those of its fused layers, so a rule names both. `static_groups` at the top level is what CPM.cu asks for;
`method` and `format` are GPTQModel's newer names. Source: package GPTQModel 7.7.0, `quantization/config.py`;
vLLM 0.32.0, `quantization/utils/gptq_utils.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import BadConfig, UnsupportedSpec
from quantkit.exporters._hf_folder import module_name
from quantkit.files.member import read_member_json
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.folder import read_folder_config
from quantkit.models.layouts.small_files import MAX_CONFIG_BYTES
from quantkit.models.spec import ModelSpec, Role
from quantkit.tensors.scheme import MAX_GROUP_SIZE, PER_ROW
from quantkit.tensors.schemes.affine_groups import AffineGroups, affine
from quantkit.tensors.views import QuantizedView

METHOD = "gptq"
BITS = (2, 3, 4, 8)
SETTINGS_NAME = "quantize_config.json"
CHECKPOINT_FORMATS = {"v1": "gptq", "v2": "gptq_v2"}
FUSED_NAMES = {(Role.Q, Role.K, Role.V): "qkv_proj", (Role.GATE, Role.UP): "gate_up_proj"}
"""What vLLM calls the layers that it makes of several."""

CPM_CU_FILES = ("model_gptq.safetensors", "model_gptq_marlin.safetensors")
"""Weights under these names lie in Marlin's order, although the settings beside them are GPTQ's."""


def quantization_config(model: Checkpoint, kind: str) -> dict[str, Any]:
    """The settings of `model`, whose linear layers are on one grid per fused layer (see `check_fused`)."""
    grids = dict(_fused_grids(model))
    base = Counter(spec for spec in grids.values() if spec is not None).most_common(1)[0][0]
    settings: dict[str, Any] = {
        **_grid_settings(base),
        "checkpoint_format": CHECKPOINT_FORMATS[kind],
        "desc_act": False,
        "format": CHECKPOINT_FORMATS[kind],
        "lm_head": False,
        "method": METHOD,
        "pack_dtype": "int32",
        "quant_method": METHOD,
        "static_groups": True,
        "true_sequential": True,
    }
    dynamic = _dynamic(model.spec, grids, base)
    return {**settings, "dynamic": dynamic} if dynamic else settings


def _grid_settings(spec: AffineGroups) -> dict[str, Any]:
    return {"bits": spec.bits, "group_size": spec.group_size, "sym": spec.symmetric}


def _fused_grids(model: Checkpoint) -> Iterator[tuple[tuple[int, tuple[Role, ...]], AffineGroups | None]]:
    """The grid of every layer that engines fuse, by block and roles."""
    first = {group.roles[0]: group.roles for group in model.spec.groups}
    for slot in model.spec.slots():
        if slot.layer is not None and slot.role in first:
            weight = model.weights[slot.name]
            scheme = affine(slot.name, weight.scheme, container=METHOD) if isinstance(weight, QuantizedView) else None
            yield (slot.layer, first[slot.role]), replace(scheme, scale_dtype="float16") if scheme else None


def _dynamic(
    model: ModelSpec, grids: Mapping[tuple[int, tuple[Role, ...]], AffineGroups | None], base: AffineGroups
) -> dict[str, dict[str, Any]]:
    """One rule for each kind of layer and exception."""
    layers: dict[tuple[tuple[Role, ...], AffineGroups | None], list[int]] = {}
    for (layer, roles), spec in grids.items():
        if spec != base:
            layers.setdefault((roles, spec), []).append(layer)
    return {
        ("-:" if spec is None else "+:") + _expression(model, roles, numbers): _grid_settings(spec)
        if spec is not None
        else {}
        for (roles, spec), numbers in layers.items()
    }


def _expression(model: ModelSpec, roles: tuple[Role, ...], layers: list[int]) -> str:
    """Matches the layers of `roles`, and what vLLM fuses them to, in the blocks `layers`."""
    parent, _, _ = model.layer_names[roles[0]].partition(".")
    names = [module_name(model.layer_names[role]).rpartition(".")[2] for role in roles]
    if roles in FUSED_NAMES:
        names.append(FUSED_NAMES[roles])
    return rf"model\.layers\.(?:{'|'.join(map(str, layers))})\.{parent}\.(?:{'|'.join(names)})$"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stranger's settings say.

    kind: "v1" or "v2". symmetric: None where only the zero points tell. per_module: whether some module has a grid
    of its own, or is dense.
    """

    kind: str
    bits: int
    group_size: int
    desc_act: bool
    symmetric: bool | None
    per_module: bool


def settings_of(path: Path, config: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """The settings of the folder `path`, None when they are not those of a GPTQ model.

    Older AutoGPTQ writes them to quantize_config.json only. Raises what `read_member` does.
    """
    if config is None:
        config = read_folder_config(path)
    settings = config.get("quantization_config")
    if settings is None and (path / SETTINGS_NAME).is_file():
        settings = read_member_json(path, SETTINGS_NAME, limit=MAX_CONFIG_BYTES)
        if "bits" not in settings:
            return None
        settings = {"quant_method": METHOD, **settings}
    if not isinstance(settings, Mapping) or settings.get("quant_method") != METHOD or _is_marlin(path, settings):
        return None
    return settings


def _is_marlin(path: Path, settings: Mapping[str, Any]) -> bool:
    return (
        bool(settings.get("is_marlin_format"))
        or settings.get("checkpoint_format") == "marlin"
        or any((path / name).is_file() for name in CPM_CU_FILES)
    )


def read_settings(settings: Mapping[str, Any], where: str) -> Settings:
    """Read settings strictly; `where` begins every message.

    Raises:
        BadConfig: a value of the wrong type or outside its range.
        UnsupportedSpec: another layout, or bits that are not 2, 3, 4 or 8.
    """
    layout = settings.get("checkpoint_format", settings.get("format")) or CHECKPOINT_FORMATS["v1"]
    kinds = {name: kind for kind, name in CHECKPOINT_FORMATS.items()}
    if not isinstance(layout, str) or layout not in kinds:
        raise UnsupportedSpec(f"{where}: checkpoint_format {str(layout)[:80]!r}; only {' and '.join(kinds)} are read")
    if settings.get("pack_dtype", "int32") != "int32":
        raise UnsupportedSpec(f"{where}: pack_dtype {str(settings['pack_dtype'])[:80]!r} is not supported; only int32")
    bits, group_size = settings.get("bits"), settings.get("group_size")
    if type(bits) is not int or bits not in BITS:
        raise UnsupportedSpec(f"{where}: bits {str(bits)[:80]!r} is not supported; only 2, 3, 4 and 8")
    if type(group_size) is not int or not (group_size == PER_ROW or 1 <= group_size <= MAX_GROUP_SIZE):
        raise BadConfig(f"{where}: group_size must be -1 or positive, is {str(group_size)[:80]!r}")
    for key in ("desc_act", "sym"):
        if not isinstance(settings.get(key, False), bool):
            raise BadConfig(f"{where}: {key} must be true or false, is {str(settings[key])[:80]!r}")
    dynamic = settings.get("dynamic") or {}
    if not isinstance(dynamic, Mapping) or not all(
        isinstance(rule, (Mapping, type(None))) for rule in dynamic.values()
    ):
        raise BadConfig(f"{where}: dynamic must be an object of objects")
    varies = any("sym" in (rule or {}) for rule in dynamic.values())
    return Settings(
        kind=kinds[layout],
        bits=bits,
        group_size=group_size,
        desc_act=settings.get("desc_act", False),
        symmetric=None if varies else settings.get("sym"),
        per_module=bool(dynamic),
    )

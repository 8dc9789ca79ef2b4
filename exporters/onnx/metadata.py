"""What a graph says of itself, under two keys of its metadata: how it was made, and which weights hold which codes.

    GRAPH_KEY           {"context": ..., "ops": ..., "type": ...}, and "attention": "sparse" where it is
    QUANTIZATION_KEY    {"groups": [{"spec": a scheme, "tensors": [names]}, ...]}; not there without codes

Both are JSON, keys sorted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadOption, MalformedFile, UnsupportedSpec
from quantkit.exporters.onnx.places import Grids
from quantkit.exporters.onnx.schemes import WIDTHS, block_of
from quantkit.exporters.onnx.settings import DENSE, Settings, settings_of
from quantkit.files.json_file import parse_json
from quantkit.models.checkpoint import ATTENTIONS
from quantkit.models.spec import NORM_ROLES, ModelSpec
from quantkit.protocols import ExportOptions
from quantkit.tensors.scheme import scheme_from_json
from quantkit.tensors.schemes.affine_groups import AffineGroups

GRAPH_KEY, QUANTIZATION_KEY = "quantkit.export", "quantkit.quantization"


def metadata(settings: Settings, grids: Grids) -> dict[str, str]:
    """The two keys; the second only where there are codes."""
    chosen = {"type": settings.type, "ops": settings.ops, "context": settings.context}
    if settings.sparse:
        chosen["attention"] = settings.attention
    found = {GRAPH_KEY: _canonical(chosen)}
    if grids:
        groups: dict[AffineGroups, list[str]] = {}
        for name, scheme in grids.items():
            groups.setdefault(scheme, []).append(name)
        listed = [{"spec": scheme.to_json(), "tensors": names} for scheme, names in groups.items()]
        found[QUANTIZATION_KEY] = _canonical({"groups": listed})
    return found


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_settings(said: Mapping[str, str], spec: ModelSpec, where: str) -> Settings:
    """Inverse of `metadata` for the settings.

    Raises:
        UnsupportedSpec: the graph is not quantkit's. MalformedFile: it says something else than settings.
    """
    if GRAPH_KEY not in said:
        raise UnsupportedSpec(
            f"{where} does not say that quantkit wrote it; other ONNX graphs are not read",
            hint="convert the original model",
        )
    found = parse_json(said[GRAPH_KEY].encode("utf-8"), f"{where}: {GRAPH_KEY}")
    attention = found.pop("attention", DENSE)
    kind, ops, context = (found.get(key) for key in ("type", "ops", "context"))
    if (
        attention not in ATTENTIONS
        or len(found) != 3
        or not isinstance(kind, str)
        or not isinstance(ops, str)
        or type(context) is not int
    ):
        raise MalformedFile(f"{where}: {GRAPH_KEY} must have a type, ops and a context")
    try:
        return settings_of(ExportOptions(type=kind, ops=ops, context=context, attention=attention), spec)
    except BadOption as error:
        raise MalformedFile(f"{where}: {GRAPH_KEY}: {error}") from None


def read_grids(said: Mapping[str, str], spec: ModelSpec, where: str) -> dict[str, AffineGroups]:
    """Inverse of `metadata` for the schemes, in the order of the model.

    Raises:
        MalformedFile: a value of another shape, or a scheme that such a graph does not hold.
    """
    if QUANTIZATION_KEY not in said:
        return {}
    where = f"{where}: {QUANTIZATION_KEY}"
    groups = parse_json(said[QUANTIZATION_KEY].encode("utf-8"), where).get("groups")
    found: dict[str, AffineGroups] = {}
    for group in groups if isinstance(groups, list) else [None]:
        if not isinstance(group, dict) or not isinstance(group.get("tensors"), list):
            raise MalformedFile(f"{where} must be a list of groups")
        scheme = _scheme(group.get("spec"), where)
        found |= {name: scheme for name in group["tensors"] if isinstance(name, str)}
    slots = {slot.name: slot for slot in spec.slots() if slot.role not in NORM_ROLES}
    for name, scheme in found.items():
        if name not in slots:
            raise MalformedFile(f"{where}: {name[:80]!r} is no matrix of the model")
        try:
            block_of(name, scheme, slots[name].shape[1])
        except UnsupportedSpec as error:
            raise MalformedFile(f"{where}: {error}") from None
    return {name: found[name] for name in slots if name in found}


def _scheme(value: object, where: str) -> AffineGroups:
    try:
        scheme = scheme_from_json(value) if isinstance(value, dict) else None
    except UnsupportedSpec as error:
        raise MalformedFile(f"{where}: {error}", hint=error.hint) from None
    if not isinstance(scheme, AffineGroups) or scheme.bits not in WIDTHS or scheme.ternary:
        raise MalformedFile(f"{where}: {str(value)[:80]!r} is no quantization of such a graph")
    return scheme

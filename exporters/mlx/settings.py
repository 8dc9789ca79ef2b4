"""The `quantization` object of config.json: written, and read as mlx-lm reads it.

    {"group_size": 64, "bits": 4, "mode": "affine", "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}}

A module that is named is what its entry says: settings, `true` for those at the top, `false` for dense. Any other is
quantized where a tensor `MODULE.scales` lies there, and bits and group size follow from the shapes; releases before
0.32 take those at the top, so every module that differs from them is named. Source: mlx-lm 0.32.2 `mlx_lm.utils`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import BadConfig, InconsistentCheckpoint, UnsupportedSpec

AFFINE = "affine"
BITS = (1, 2, 3, 4, 5, 6, 8)
GROUP_SIZES = (128, 64, 32)
FLOAT_MODES: Mapping[str, tuple[int, int]] = {"mxfp4": (4, 32), "nvfp4": (4, 16)}
"""Modes of floating-point codes that are read, with the bits and the group size that each has."""
_KEYS = ("group_size", "bits", "mode")


@dataclass(frozen=True, slots=True)
class Stored:
    """How a module's codes lie there: bits of a code, columns of a group, and what the codes are."""

    bits: int
    group_size: int
    mode: str = AFFINE

    def __str__(self) -> str:
        return f"{self.mode} {self.bits} bits g{self.group_size}"


@dataclass(frozen=True, slots=True)
class Settings:
    """usual: of modules that no entry names. modules: what the others are; None = dense."""

    usual: Stored
    modules: Mapping[str, Stored | None]

    def of(self, module: str, shapes: Stored) -> Stored | None:
        """What mlx-lm takes `module`, which has scales, for; `shapes`: what its tensors' shapes and dtypes tell."""
        return self.modules.get(module, shapes)


def written_settings(modules: Mapping[str, Stored]) -> dict[str, Any]:
    """The object for modules that are quantized so: the most frequent setting at the top, all others by name."""
    usual = Counter(modules.values()).most_common(1)[0][0]
    named = {name: _json(stored) for name, stored in modules.items() if stored != usual}
    return {**_json(usual), **named}


def _json(stored: Stored) -> dict[str, Any]:
    return {"group_size": stored.group_size, "bits": stored.bits, "mode": stored.mode}


def read_settings(settings: Mapping[str, Any], modules: Collection[str], where: str) -> Settings:
    """Inverse of `written_settings`, of any mlx-lm's.

    Args:
        settings: the object.
        modules: those that the model has.
        where: begins every message.

    Raises:
        BadConfig: a value of the wrong type. UnsupportedSpec: a key, mode or width that is not understood.
        InconsistentCheckpoint: an entry for a module that the model does not have.
    """
    usual = _read_stored({key: settings[key] for key in _KEYS if key in settings}, where)
    named: dict[str, Stored | None] = {}
    for name, entry in settings.items():
        if name in _KEYS:
            continue
        if not isinstance(entry, (Mapping, bool)):
            raise UnsupportedSpec(f"{where}: {name[:80]} {str(entry)[:40]!r} is not understood")
        if name not in modules and entry is not False:  # the head of tied embeddings is often named so
            raise InconsistentCheckpoint(f"{where} names {name[:120]!r}, which the model does not have")
        if isinstance(entry, Mapping):
            named[name] = _read_stored(entry, f"{where}: {name}")
        else:
            named[name] = usual if entry else None
    return Settings(usual, named)


def _read_stored(entry: Mapping[str, Any], where: str) -> Stored:
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise UnsupportedSpec(f"{where}: {str(unknown[0])[:80]!r} is not understood")
    bits, group_size, mode = entry.get("bits"), entry.get("group_size"), entry.get("mode", AFFINE)
    if type(bits) is not int or type(group_size) is not int or not isinstance(mode, str):
        raise BadConfig(f"{where} must have bits and group_size as integers, and mode as a name if at all")
    known = (
        bits in BITS and group_size in GROUP_SIZES if mode == AFFINE else (bits, group_size) == FLOAT_MODES.get(mode)
    )
    if not known:
        modes = ", ".join((AFFINE, *FLOAT_MODES))
        raise UnsupportedSpec(
            f"{where}: {bits} bits in groups of {group_size}, mode {mode[:40]!r}, is not read",
            hint=f"modes: {modes}; affine has {', '.join(map(str, BITS))} bits and groups of 32, 64 and 128",
        )
    return Stored(bits, group_size, mode)

"""Rotary embedding as configs describe it: plain, or LongRoPE.

The object stands under `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5, which puts `rope_theta`
into it). Where both are there, or a value stands both inside and outside, loaders take the one or the other: they must
agree.

LongRoPE's attention factor follows from the context over the original one. transformers lets `factor` replace that
ratio, and `attention_factor` the result (`_compute_longrope_parameters`); OpenBMB's code for MiniCPM reads neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quantkit.errors import BadConfig, UnsupportedModel
from quantkit.models.config_reader import ConfigReader
from quantkit.models.spec import RopeSpec, longrope_attention_factor

ORIGINAL = "original_max_position_embeddings"
NEW_NAME, OLD_NAME = "rope_parameters", "rope_scaling"
_PLAIN_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL)
_FACTORS = ("factor", "attention_factor")
_LONGROPE_KEYS = (*_PLAIN_KEYS, "short_factor", "long_factor", *_FACTORS)
_ALIASES = {"su": "longrope"}


def read_rope(config: Mapping[str, Any], where: str, head_dim: int, context: int, *, reads_factor: bool) -> RopeSpec:
    """The rotary embedding of a config.

    Args:
        config: config.json.
        where: begins every message.
        head_dim: channels of a head.
        context: max_position_embeddings.
        reads_factor: whether `attention_factor` and `factor` count.

    Raises:
        UnsupportedModel: another type than default and longrope, or a key that is not understood.
        BadConfig: a value out of range, or two that contradict each other.
    """
    scaling = _scaling(config, where)
    reader = ConfigReader(scaling, f"{where}: {_name(config)}")
    theta = _agreeing(config, scaling, "rope_theta", where)
    base = ConfigReader({"rope_theta": theta}, where).number("rope_theta", default=10000.0)
    kind = _kind(scaling)
    if kind not in ("default", "longrope"):
        raise UnsupportedModel(f"{where}: rope type {str(kind)[:80]!r} is not supported; only default and longrope")
    _check_keys(scaling, _PLAIN_KEYS if kind == "default" else _LONGROPE_KEYS, reader.where)
    if kind == "default":
        return RopeSpec(theta=base, kind="default")
    outside = _agreeing(config, scaling, ORIGINAL, where)
    original = ConfigReader({ORIGINAL: outside}, reader.where).integer(ORIGINAL, 2, 1 << 31, default=context)
    factor = longrope_attention_factor(context / original, original)
    return RopeSpec(
        theta=base,
        kind="longrope",
        short_factor=reader.factors("short_factor", head_dim // 2),
        long_factor=reader.factors("long_factor", head_dim // 2),
        original_max_position_embeddings=original,
        attention_factor=_explicit_factor(reader, original, default=factor) if reads_factor else factor,
    )


def ignored_factors(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A note for a family that reads no `factor` and `attention_factor`, where these would make a difference."""
    scaling = _scaling(config, where)
    if _kind(scaling) != "longrope":
        return ()
    context = config.get("max_position_embeddings") or 2048
    original = scaling.get(ORIGINAL) or config.get(ORIGINAL) or context
    derived = longrope_attention_factor(context / original, original)
    given = [f"{key} {scaling[key]}" for key in _FACTORS if scaling.get(key) is not None]
    reader = ConfigReader(scaling, f"{where}: {_name(config)}")
    if not given or math.isclose(_explicit_factor(reader, original, default=derived), derived, rel_tol=1e-6):
        return ()
    return (
        f"{reader.where}: {' and '.join(given)} would change the attention factor; OpenBMB's code for MiniCPM ignores "
        f"that and computes {derived:.7g}, and so does quantkit",
    )


def _explicit_factor(reader: ConfigReader, original: int, *, default: float) -> float:
    """The attention factor by transformers' rule."""
    if reader.config.get("factor") is not None:
        default = longrope_attention_factor(reader.number("factor"), original)
    return reader.number("attention_factor", default=default)


def _kind(scaling: Mapping[str, Any]) -> object:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return _ALIASES.get(kind, kind) if isinstance(kind, str) else kind


def _name(config: Mapping[str, Any]) -> str:
    return NEW_NAME if config.get(NEW_NAME) else OLD_NAME


def _scaling(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The one object that describes RoPE, empty where there is none."""
    found = {name: config[name] for name in (NEW_NAME, OLD_NAME) if config.get(name)}
    for name, value in found.items():
        if not isinstance(value, Mapping):
            raise BadConfig(f"{where}: {name} must be an object or null, is {str(value)[:80]!r}")
        kinds = {value[key] for key in ("rope_type", "type") if isinstance(value.get(key), str)}
        if len({_ALIASES.get(kind, kind) for kind in kinds}) > 1:
            raise BadConfig(f"{where}: {name} says rope_type {value['rope_type']!r} and type {value['type']!r}")
    if len(found) == 2 and _comparable(found[NEW_NAME]) != _comparable(found[OLD_NAME]):
        raise BadConfig(
            f"{where}: {NEW_NAME} and {OLD_NAME} differ, and loaders take the one or the other",
            hint="remove the one that is wrong",
        )
    return next(iter(found.values()), {})


def _comparable(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """What matters when two objects are compared: `rope_theta` is compared with what stands outside."""
    rest = {key: value for key, value in scaling.items() if key not in ("type", "rope_type", "rope_theta")}
    return {**rest, "rope_type": _kind(scaling)}


def _agreeing(config: Mapping[str, Any], scaling: Mapping[str, Any], key: str, where: str) -> Any:  # noqa: ANN401
    """The value of `key`, wherever it stands; raises `BadConfig` where it stands twice and differs."""
    places = {"": config, f"{NEW_NAME}.": config.get(NEW_NAME) or {}, f"{OLD_NAME}.": config.get(OLD_NAME) or {}}
    found = {prefix: place[key] for prefix, place in places.items() if place.get(key) is not None}
    if len({repr(float(value)) if type(value) is int else repr(value) for value in found.values()}) > 1:
        told = " and ".join(f"{prefix}{key} {str(value)[:40]}" for prefix, value in found.items())
        raise BadConfig(
            f"{where}: {told} contradict each other; loaders take the one or the other",
            hint="keep the right one",
        )
    return next(iter(found.values()), None)


def _check_keys(scaling: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    partial = scaling.get("partial_rotary_factor")
    if partial is not None and partial != 1:
        raise UnsupportedModel(f"{where}: partial_rotary_factor {str(partial)[:80]} is not supported; only 1")
    for key, value in scaling.items():
        if key not in known and value is not None and not (key in _FACTORS and value == 1):
            raise UnsupportedModel(f"{where}: {key} {repr(value)[:80]} is not understood and may change the model")

"""Rotary embedding as configs describe it: plain, LongRoPE, dynamic NTK, or one of `_rope_types`.

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
from quantkit.models.architectures._rope_spec import RopeSpec, longrope_attention_factor
from quantkit.models.architectures._rope_types import AMPLITUDE, FACTOR, KEYS, STRETCHES, Frame
from quantkit.models.config_reader import ConfigReader, shown

ORIGINAL = "original_max_position_embeddings"
NEW_NAME, OLD_NAME = "rope_parameters", "rope_scaling"
THETA = (2.0, 1e15)
LLAMA_TYPES = tuple(KEYS)
MINICPM_TYPES = ("default", "longrope", "linear", "dynamic")
"""Types that a family's own code has: transformers' for Llama, OpenBMB's for MiniCPM."""
_SHARED_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL)
_FACTORS = ("factor", "attention_factor")
_ALIASES = {"su": "longrope"}


def read_rope(
    config: Mapping[str, Any],
    where: str,
    head_dim: int,
    context: int,
    *,
    types: tuple[str, ...],
    reads_factor: bool,
) -> RopeSpec:
    """The rotary embedding of a config.

    Args:
        config: config.json.
        where: begins every message.
        head_dim: channels of a head.
        context: max_position_embeddings.
        types: those that the family has.
        reads_factor: whether `attention_factor` and `factor` of LongRoPE count.

    Raises:
        UnsupportedModel: a type that the family does not have, or a key that is not understood.
        BadConfig: a value out of range, or two that contradict each other.
    """
    scaling = _scaling(config, where)
    reader = ConfigReader(scaling, f"{where}: {_name(config)}")
    theta = ConfigReader({"rope_theta": _agreeing(config, scaling, "rope_theta", where)}, where)
    base = theta.number("rope_theta", *THETA, default=10000.0)
    kind = _checked_kind(scaling, types, reader.where)
    if kind == "default":
        return RopeSpec(theta=base, kind="default")
    outside = ConfigReader({ORIGINAL: _agreeing(config, scaling, ORIGINAL, where)}, reader.where)
    if kind == "dynamic":
        return _dynamic(reader, outside, base, head_dim, context)
    original = outside.integer(ORIGINAL, 2, 1 << 31, default=context)
    if kind in STRETCHES:
        frame = Frame(theta=base, head_dim=head_dim, context=context, original=original)
        factors, amplitude = STRETCHES[kind](reader, frame)
        return _longrope(base, factors, factors, max(2, context), amplitude)
    factor = longrope_attention_factor(context / original, original)
    short, long = (reader.factors(key, head_dim // 2, *FACTOR) for key in ("short_factor", "long_factor"))
    return _longrope(
        base, short, long, original, _explicit_factor(reader, original, default=factor) if reads_factor else factor
    )


def _longrope(
    theta: float, short: tuple[float, ...], long: tuple[float, ...], original: int, amplitude: float
) -> RopeSpec:
    return RopeSpec(
        theta=theta,
        kind="longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        attention_factor=amplitude,
    )


def _dynamic(reader: ConfigReader, outside: ConfigReader, theta: float, head_dim: int, context: int) -> RopeSpec:
    if outside.integer(ORIGINAL, 1, 1 << 31, default=context) != context:
        raise BadConfig(
            f"{reader.where}: {ORIGINAL} {outside.config[ORIGINAL]} is not max_position_embeddings {context}; some "
            "loaders of dynamic NTK take the one and some the other",
            hint=f"remove {ORIGINAL}, and let max_position_embeddings be the context that the model was trained with",
        )
    if head_dim < 4:
        raise BadConfig(f"{reader.where}: dynamic NTK needs a head_dim of at least 4, is {head_dim}")
    factor = reader.number("factor", 1.0, FACTOR[1])
    return RopeSpec(theta=theta, kind="dynamic", original_max_position_embeddings=context, factor=factor)


def rope_notes(config: Mapping[str, Any], where: str, *, reads_factor: bool) -> tuple[str, ...]:
    """What a config that `read_rope` takes says of RoPE and users should know, one line each."""
    kind = _kind(_scaling(config, where))
    if kind == "longrope" and not reads_factor:
        return ignored_factors(config, where)
    if kind == "dynamic":
        return (
            f"{where}: dynamic NTK stretches RoPE beyond max_position_embeddings only, by the length of the text; of "
            "the engines transformers alone follows it there, others keep to the context",
        )
    if kind in STRETCHES:
        return (f"{where}: rope type {kind!r} is read and written as LongRoPE whose two lists of factors are the same",)
    return ()


def ignored_factors(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """A note for a family that reads no `factor` and `attention_factor`, where these would make a difference."""
    scaling = _scaling(config, where)
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
        default = longrope_attention_factor(reader.number("factor", *FACTOR), original)
    return reader.number("attention_factor", *AMPLITUDE, default=default)


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
            raise BadConfig(f"{where}: {name} must be an object or null, is {shown(value)}")
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
    first, *others = found.values() or (None,)
    if any(value != first or isinstance(value, bool) != isinstance(first, bool) for value in others):
        told = " and ".join(f"{prefix}{key} {shown(value, 40)}" for prefix, value in found.items())
        raise BadConfig(
            f"{where}: {told} contradict each other; loaders take the one or the other",
            hint="keep the right one",
        )
    return first


def _checked_kind(scaling: Mapping[str, Any], types: tuple[str, ...], where: str) -> str:
    """The type, which is one of `types`; every key of the object is one that the type has, or changes nothing."""
    partial = scaling.get("partial_rotary_factor")
    if partial is not None and (partial != 1 or isinstance(partial, bool)):
        raise UnsupportedModel(f"{where}: partial_rotary_factor {shown(partial)} is not supported; only 1")
    nested = [key for key, value in scaling.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModel(
            f"{where}: {nested[0][:80]} is not understood: an object for some of the layers",
            hint="if all layers turn alike, say it once for all of them",
        )
    kind = _kind(scaling)
    if not isinstance(kind, str) or kind not in types:
        known = " and ".join(filter(None, (", ".join(types[:-1]), types[-1])))
        raise UnsupportedModel(f"{where}: rope type {shown(kind)} is not supported; only {known}")
    for key, value in scaling.items():
        if key not in (*_SHARED_KEYS, *KEYS[kind]) and value is not None and not (key in _FACTORS and value == 1):
            raise UnsupportedModel(f"{where}: {key[:80]} {shown(value)} is not understood and may change the model")
    return kind

"""Types of RoPE that stretch every context alike, as the LongRoPE of one list of factors that turns by the same angles.

A pair of channels whose frequency such a type divides by f turns as under a LongRoPE factor of f. Read that way, every
container and engine that holds LongRoPE holds them. Source: transformers 5.24 `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quantkit.errors import BadConfig
from quantkit.models.config_reader import ConfigReader

FACTOR = (1e-3, 1e6)
"""What any factor of a frequency may be."""
AMPLITUDE = (1e-3, 1e3)
"""What an attention factor may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a type's own keys are read beside: base and channels of a head, longest and original context in tokens."""

    theta: float
    head_dim: int
    context: int
    original: int


Stretch = tuple[tuple[float, ...], float]
"""Factors of all pairs of channels, and what multiplies cos and sin."""


def linear(reader: ConfigReader, frame: Frame) -> Stretch:
    """Every frequency over `factor`. Source: `_compute_linear_scaling_rope_parameters`."""
    return (reader.number("factor", *FACTOR),) * (frame.head_dim // 2), 1.0


def llama3(reader: ConfigReader, frame: Frame) -> Stretch:
    """Long waves over `factor`, short ones as they are, a smooth passage between. Source: `_compute_llama3_parameters`.

    A wave is long when it turns less than `low_freq_factor` times within the original context, short when more than
    `high_freq_factor` times.
    """
    factor = reader.number("factor", *FACTOR)
    low, high = reader.number("low_freq_factor", 1e-6, 1e6), reader.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise BadConfig(f"{reader.where}: high_freq_factor {high:g} must be larger than low_freq_factor {low:g}")

    def stretched(frequency: float) -> float:
        turns = frame.original * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1 / ((1 - smooth) / factor + smooth)

    return tuple(map(stretched, _frequencies(frame))), 1.0


def yarn(reader: ConfigReader, frame: Frame) -> Stretch:
    """High frequencies as they are, low ones over `factor`, a ramp between. Source: `_compute_yarn_parameters`."""
    ratio = frame.context / frame.original if "factor" in reader.config else None  # a null is the ratio, as there
    factor = reader.number("factor", *FACTOR, default=ratio)
    fast, slow = reader.number("beta_fast", 1e-6, 1e6, default=32.0), reader.number("beta_slow", 1e-6, 1e6, default=1.0)
    low, high = _correction(frame, fast), _correction(frame, slow)
    if reader.boolean("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, frame.head_dim - 1)
    width = high - low or 0.001
    ramps = (min(max((pair - low) / width, 0.0), 1.0) for pair in range(frame.head_dim // 2))
    factors = tuple(1 / (ramp / factor + (1 - ramp)) for ramp in ramps)
    return factors, reader.number("attention_factor", *AMPLITUDE, default=_yarn_amplitude(reader, factor))


def _correction(frame: Frame, turns: float) -> float:
    """The pair of channels that turns `turns` times within the original context, as a real number."""
    wave = frame.original / (turns * 2 * math.pi)
    return frame.head_dim * math.log(wave) / (2 * math.log(frame.theta))


def _yarn_amplitude(reader: ConfigReader, factor: float) -> float:
    def amplitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    keys = ("mscale", "mscale_all_dim")
    one, other = (reader.number(key, 1e-6, 1e6) if reader.config.get(key) else None for key in keys)
    return amplitude(1.0) if one is None or other is None else amplitude(one) / amplitude(other)


def _frequencies(frame: Frame) -> tuple[float, ...]:
    """theta^(-2i/D)."""
    return tuple(frame.theta ** (-2 * pair / frame.head_dim) for pair in range(frame.head_dim // 2))


STRETCHES: Mapping[str, Callable[[ConfigReader, Frame], Stretch]] = {"linear": linear, "llama3": llama3, "yarn": yarn}
KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "longrope": ("short_factor", "long_factor", "factor", "attention_factor"),
    "dynamic": ("factor",),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
"""Every type that is read, and the keys that it has beside `rope_theta` and the original context."""

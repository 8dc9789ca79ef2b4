"""What a `ModelSpec` says of rotary embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding.

    "longrope": a factor for each pair of channels, short ones up to the original context, long ones beyond. Types that
    stretch every context alike (linear, llama3, yarn) are this one with two equal lists. "dynamic": plain RoPE within
    the original context; beyond it `base` grows with the length.

    `attention_factor` multiplies cos and sin. Unless a config says otherwise it is `longrope_attention_factor` of the
    context over the original one. `factor` is that of "dynamic".
    """

    theta: float
    kind: str  # "default", "longrope" or "dynamic"
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    factor: float = 1.0

    def factors(self, context_length: int) -> tuple[float, ...]:
        """LongRoPE factors for a context of `context_length` tokens; empty for other kinds."""
        return self.long_factor if context_length > self.original_max_position_embeddings else self.short_factor

    def base(self, context_length: int, head_dim: int) -> float:
        """What frequencies are powers of: theta, but for dynamic NTK (`_compute_dynamic_ntk_parameters`)."""
        original = self.original_max_position_embeddings
        if self.kind != "dynamic" or context_length <= original:
            return self.theta
        stretch = self.factor * context_length / original - (self.factor - 1)
        return self.theta * float(stretch ** (head_dim / (head_dim - 2)))

    def turns_alike(self, one: int, other: int) -> bool:
        """Whether a position is turned by the same angles in contexts of `one` and of `other` tokens."""
        original = self.original_max_position_embeddings
        if self.kind == "dynamic" and max(one, original) != max(other, original):
            return False
        return self.factors(one) == self.factors(other)


def longrope_attention_factor(extension: float, original: int) -> float:
    """sqrt(1 + ln(extension) / ln(original)) for a context `extension` times the `original` one, 1 if not longer.

    Source: Ding et al. 2024, "LongRoPE"; transformers `_compute_longrope_parameters`.
    """
    return math.sqrt(1.0 + math.log(max(extension, 1.0)) / math.log(original))

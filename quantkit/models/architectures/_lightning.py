"""What a `ModelSpec` says of linear attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningSpec:
    """Layers of linear attention, whose state does not grow: which they are, their heads, channels of each."""

    layers: tuple[int, ...]
    heads: int
    head_dim: int

    @property
    def state_bytes(self) -> int:
        """Of all layers' states, which are kept in float32."""
        return 4 * len(self.layers) * self.heads * self.head_dim**2

"""What a `ModelSpec` says of latent attention (MLA)."""

from __future__ import annotations

from dataclasses import dataclass

NORM_EPS = 1e-6
"""What OpenBMB's code and transformers add in the norms of the latents, whatever `rms_norm_eps` says: they make these
norms without it. vLLM and llama.cpp take `rms_norm_eps` there as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec:
    """Queries, and keys with values, are made of vectors that are narrower than they are: latents.

    q_lora_rank, kv_lora_rank: channels of the two latents.
    qk_nope_head_dim, qk_rope_head_dim: of a head's query and key, first those that are not rotated, then those that
        are; the rotated part of keys is made without a latent, and all heads have the same.
    v_head_dim: of a head's values.
    norm_eps: what the norms of the latents add to the mean square (`NORM_EPS`).
    """

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    norm_eps: float = NORM_EPS

    @property
    def qk_head_dim(self) -> int:
        """Channels of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_head_dim(self) -> int:
        """What a head takes out of the latent of keys and values."""
        return self.qk_nope_head_dim + self.v_head_dim

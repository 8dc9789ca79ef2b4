"""The forward pass of a model with latent attention: the reference's, but for how queries, keys and values are made.

R and C are the ranks of the two latents, N, P and U the channels of a head's unrotated and rotated part and of its
values; h = rms_norm(x).

    q            = rms_norm(h W_q_a^T) W_q_b^T          (T, R) to (T, H * (N + P))
    c, k_rope    = h W_kv_a^T                           (T, C), (T, P)
    k_nope, v    = rms_norm(c) W_kv_b^T                 (T, H * (N + U))
    q, k         = [q_nope, rotate(q_rope)], [k_nope, rotate(k_rope)]     k_rope the same in all heads
    x            = x + s * attention(q, k, v) W_o^T     (T, H * U)

Source: transformers `models/minicpm3`; "DeepSeek-V2" (2024), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantkit.models.architectures._latent import LatentSpec
from quantkit.models.spec import ModelSpec
from quantkit.runtimes.reference.formulas import rms_norm, rotate
from quantkit.runtimes.reference.forward import Batch, ForwardPass, Span, Work
from quantkit.runtimes.reference.weights import Weights

MATRICES = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
NORMS = ("q_a_layernorm", "kv_a_layernorm")


class LatentForwardPass(ForwardPass):
    """`ForwardPass` with latent attention."""

    def __init__(self, spec: ModelSpec, weights: Weights, work: Work, *, keep: bool) -> None:
        super().__init__(spec, weights, work, keep=keep)
        assert spec.latent is not None
        self._latent: LatentSpec = spec.latent

    def _add_attention(self, batches: Sequence[Batch], layer: int) -> None:
        """See `ForwardPass._add_attention`."""
        block = f"model.layers.{layer}"
        (weight,) = self._read(block, "input_layernorm")
        W_q_a, W_q_b, W_kv_a, W_kv_b, W_o = self._read(f"{block}.self_attn", *MATRICES)
        q_norm, kv_norm = self._read(f"{block}.self_attn", *NORMS)
        eps, rank = self._latent.norm_eps, self._latent.kv_lora_rank
        for batch in batches:
            h = batch.inputs(self._norm(batch.x, weight))
            latent = rms_norm(self._multiply(h, W_q_a), q_norm, eps)
            q = self._multiply(batch.inputs(latent), W_q_b)
            compressed = self._multiply(h, W_kv_a)
            latent = rms_norm(compressed[:, :rank], kv_norm, eps)
            kv, turning = self._multiply(batch.inputs(latent), W_kv_b), compressed[:, rank:]
            mixed = [
                self._latently(span, layer, q[span.rows], kv[span.rows], turning[span.rows]) for span in batch.spans
            ]
            batch.x = batch.x + self._s * self._multiply(batch.inputs(np.concatenate(mixed)), W_o)

    def _latently(self, span: Span, layer: int, q: np.ndarray, kv: np.ndarray, turning: np.ndarray) -> np.ndarray:
        """Attention of one prompt, (T, H * U), for q (T, H * (N + P)), kv (T, H * (N + U)) and k_rope (T, P)."""
        nope = self._latent.qk_nope_head_dim
        q, kv = (x.reshape(len(x), self._spec.num_attention_heads, -1).swapaxes(0, 1) for x in (q, kv))
        turned = np.broadcast_to(rotate(turning, span.cos, span.sin), (len(kv), *turning.shape))
        q = np.concatenate((q[..., :nope], rotate(q[..., nope:], span.cos, span.sin)), axis=-1)
        k = np.concatenate((kv[..., :nope], turned), axis=-1)
        return self._attend(span, layer, q, k, np.ascontiguousarray(kv[..., nope:]))

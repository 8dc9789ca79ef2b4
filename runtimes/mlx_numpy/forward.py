"""The forward pass of mlx-lm's `llama` and `minicpm`, in numpy float32, with keys and values kept.

    x = embed[ids] * scale_emb
    x = x + s * attention(norm(x));  x = x + s * mlp(norm(x))      per block
    logits = norm(x) / logit_divisor @ head.T

RoPE is mlx-lm's: a pair turns by t / (theta^(2i/D) * long_factor_i), whatever the length; LongRoPE's attention factor
multiplies queries and keys before they are turned; dynamic NTK takes the length of the text so far for each part.
Source: mlx-lm 0.32.2 `models/llama.py`, `models/minicpm.py`, `models/rope_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.models.spec import EMBEDDING, FINAL_NORM, ModelSpec, Role
from quantkit.runtimes.mlx_numpy.container import Container


class Past:
    """Keys and values of every block, float32 (heads, positions, channels), of `length` positions."""

    def __init__(self, blocks: int) -> None:
        self.length = 0
        self._blocks: list[tuple[np.ndarray, np.ndarray] | None] = [None] * blocks

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self.length = min(self.length, length)
        self._blocks = [block and (block[0][:, : self.length], block[1][:, : self.length]) for block in self._blocks]

    def extend(self, block: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All keys and values of a block with the new ones at their end."""
        before = self._blocks[block]
        if before is not None:
            k, v = np.concatenate((before[0], k), axis=1), np.concatenate((before[1], v), axis=1)
        self._blocks[block] = k, v
        return k, v


class Forward:
    """A model that can be run part by part."""

    def __init__(self, spec: ModelSpec, container: Container) -> None:
        self._spec = spec
        self._container = container
        self._shapes = {slot.name: slot.shape for slot in spec.slots()}

    def past(self) -> Past:
        """An empty one."""
        return Past(self._spec.num_hidden_layers)

    def stages(self, token_ids: Sequence[int], past: Past) -> Mapping[str, np.ndarray]:
        """Every stage of tokens that follow those of `past`, which is extended; named as `TracingSession.trace`."""
        spec = self._spec
        x = self._weight(EMBEDDING)[np.array(token_ids)] * np.float32(spec.scale_emb)
        found = {"embedding": x}
        for block in range(spec.num_hidden_layers):
            x = x + np.float32(spec.residual_scale) * self._attention(block, x, past)
            x = x + np.float32(spec.residual_scale) * self._mlp(block, x)
            found[f"block {block}"] = x
        past.length += len(token_ids)
        found["final norm"] = x = self._norm(x, self._weight(FINAL_NORM))
        found["logits"] = x / np.float32(spec.logit_divisor) @ self._weight(spec.head_name).T
        return found

    def _attention(self, block: int, x: np.ndarray, past: Past) -> np.ndarray:
        spec = self._spec
        h = self._norm(x, self._of(block, Role.ATTN_NORM))
        q, k, v = (
            (h @ self._of(block, role).T).reshape(len(h), -1, spec.head_dim).swapaxes(0, 1)
            for role in (Role.Q, Role.K, Role.V)
        )
        q, k = self._turned(q, past.length), self._turned(k, past.length)
        k, v = past.extend(block, k, v)
        shared = spec.num_attention_heads // spec.num_key_value_heads
        future = np.arange(k.shape[1])[None] > past.length + np.arange(len(h))[:, None]
        mixed = np.empty_like(q)
        for head in range(spec.num_attention_heads):
            scores = q[head] @ k[head // shared].T * np.float32(spec.head_dim**-0.5)
            scores[future] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[head] = weights / weights.sum(axis=-1, keepdims=True) @ v[head // shared]
        attended: np.ndarray = mixed.swapaxes(0, 1).reshape(len(h), -1) @ self._of(block, Role.O).T
        return attended

    def _turned(self, x: np.ndarray, first: int) -> np.ndarray:
        """Queries or keys (heads, T, D), of which the first stands at position `first`."""
        spec, rope = self._spec, self._spec.rope
        half = spec.head_dim // 2
        exponent = np.arange(half, dtype=np.float32) * np.float32(2 / spec.head_dim)
        wavelength = np.float32(rope.base(first + x.shape[1], spec.head_dim)) ** exponent
        if rope.kind == "longrope":
            wavelength = wavelength * np.array(rope.long_factor, np.float32)
            x = x * np.float32(rope.attention_factor)
        angle = np.arange(first, first + x.shape[1], dtype=np.float32)[:, None] / wavelength
        cos, sin = np.cos(angle), np.sin(angle)
        one, other = x[..., :half], x[..., half:]
        return np.concatenate((one * cos - other * sin, one * sin + other * cos), axis=-1)

    def _mlp(self, block: int, x: np.ndarray) -> np.ndarray:
        h = self._norm(x, self._of(block, Role.MLP_NORM))
        gate = h @ self._of(block, Role.GATE).T
        with np.errstate(over="ignore"):
            gate = gate / (1 + np.exp(-gate))
        product: np.ndarray = gate * (h @ self._of(block, Role.UP).T) @ self._of(block, Role.DOWN).T
        return product

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        normed: np.ndarray = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self._spec.rms_norm_eps))
        weighed: np.ndarray = normed * weight
        return weighed

    def _of(self, block: int, role: Role) -> np.ndarray:
        return self._weight(self._spec.weight_name(block, role))

    def _weight(self, name: str) -> np.ndarray:
        return self._container.weight(name, self._shapes[name])

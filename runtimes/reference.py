"""The oracle: the family's forward pass in plain numpy float32, over any artifact that quantkit reads.

Slow and readable on purpose. It shares no line with `quantkit/models/torch_model.py`; each step is written from its
formula, so that the two, and the engines, can accuse one another. Shapes: T tokens, H heads, G key/value heads, D
channels per head, E hidden size, F intermediate size, V vocabulary.

    x = W_embed[ids] * scale_emb                                                                       (T, E)
    x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      per block, s = residual_scale
    logits = rms_norm(x) / logit_divisor @ W_head.T,  W_head = W_embed when embeddings are tied        (T, V)

Source: OpenBMB `modeling_minicpm.py`; RoFormer (Su et al. 2021) for the rotation, LongRoPE (Ding et al. 2024) for
its rescaled frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from quantkit import registry
from quantkit.errors import BadOption
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import RopeSpec
from quantkit.protocols import Predictions
from quantkit.tensors.views import QuantizedView

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHT_BUDGET = 2 << 30
"""Bytes of float32 weights kept between calls: a 0.5B model whole; of larger ones what fits, the rest read anew."""


class Weights:
    """Float32 weights by name. Kept until `budget` bytes are held; what does not fit is read at every use.

    Nothing is evicted: a forward pass visits all weights in a fixed order, where dropping the oldest would drop
    exactly the one that is needed next.
    """

    def __init__(self, checkpoint: Checkpoint, budget: int) -> None:
        self._views = checkpoint.weights
        self._kept: dict[str, np.ndarray] = {}
        self._free = budget

    def whole(self, name: str) -> np.ndarray:
        """The tensor `name` in float32: widened exactly if dense, scale * (code - zero) if quantized."""
        if name in self._kept:
            return self._kept[name]
        view = self._views[name]
        dequantized = view.read().dequantized() if isinstance(view, QuantizedView) else view.read()
        values = dequantized.astype(np.float32, copy=False)
        if values.nbytes <= self._free:
            self._kept[name] = values
            self._free -= values.nbytes
        return values


@dataclass(slots=True)
class Past:
    """What attention remembers: the ids so far, and per block the rotated keys and the values (G, len(ids), D)."""

    ids: list[int]
    blocks: dict[int, tuple[np.ndarray, np.ndarray]]

    def cut(self, length: int) -> None:
        """Forget all but the first `length` positions; being causal, those do not depend on what followed."""
        self.ids = self.ids[:length]
        self.blocks = {layer: (k[:, :length], v[:, :length]) for layer, (k, v) in self.blocks.items() if length}

    def extend(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append a block's new keys and values (G, T, D); returns all of them, (G, S, D)."""
        if layer in self.blocks:
            k, v = (np.concatenate(pair, axis=1) for pair in zip(self.blocks[layer], (k, v), strict=True))
        self.blocks[layer] = (k, v)
        return k, v


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """y = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)  # (T, 1)
    normed: np.ndarray = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) along the last axis, shifted by the maximum so that exp cannot overflow."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), as x * (1 + tanh(x / 2)) / 2, which cannot overflow."""
    gated: np.ndarray = x * (np.float32(0.5) * (np.float32(1) + np.tanh(x * np.float32(0.5))))
    return gated


def rope_angles(positions: np.ndarray, rope: RopeSpec, head_dim: int, context_length: int) -> np.ndarray:
    """Angle of each position and channel pair, (T, D/2): t / ext_i * theta^(-2i/D).

    ext_i are LongRoPE's factors for a context of `context_length` tokens, 1 without them. In float32 and in the
    order of operations of OpenBMB's code (t * (1/ext_i), then times the frequency): far positions turn by thousands
    of radians, where the rounding of that order is part of the model.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)  # (D/2,)
    frequency = np.float32(1) / np.float32(rope.theta) ** exponent
    factors = rope.factors(context_length)
    ext = np.array(factors, np.float32) if factors else np.ones(head_dim // 2, np.float32)
    angles: np.ndarray = positions.astype(np.float32)[:, None] * (np.float32(1) / ext) * frequency
    return angles


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + D/2}) of x (heads, T, D) by its angle; cos and sin are (T, D/2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def round_to_int8(x: np.ndarray) -> np.ndarray:
    """Each run of 32 values along the last axis as integers -127..127 times max|x| / 127, that scale in float16.

    What ggml's integer kernels do to their inputs (`quantize_row_q8_0`). Rows that 32 does not divide are one run.
    """
    width = x.shape[-1] if x.shape[-1] % 32 else 32
    blocks = x.reshape(*x.shape[:-1], -1, width)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scale = scale.astype(np.float16).astype(np.float32)
    codes = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0).round()
    rounded: np.ndarray = (codes * scale).reshape(x.shape)
    return rounded


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention: q (H, T, D) are the last T of the S positions of k and v (G, S, D).

    softmax(q k^T / sqrt(D)) v per head; query head h reads key/value head h // (H / G). Returns (T, H * D).
    One head at a time, so that only one (T, S) matrix of scores is held.
    """
    heads, new, head_dim = q.shape
    total = k.shape[1]
    future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]  # (T, S)
    mixed = np.empty((new, heads, head_dim), np.float32)
    for head in range(heads):
        source = head // (heads // k.shape[0])
        scores = q[head] @ k[source].T / np.float32(np.sqrt(head_dim))  # (T, S)
        scores[future] = -np.inf
        mixed[:, head] = softmax(scores) @ v[source]
    return mixed.reshape(new, heads * head_dim)


class ReferenceSession:
    """A checkpoint ready to run. Weights are read at first use; `budget` bounds how many bytes of them stay.

    Raises:
        BadOption: no token ids, or one that is not in the vocabulary.
    """

    def __init__(self, checkpoint: Checkpoint, *, budget: int = WEIGHT_BUDGET) -> None:
        self.spec = checkpoint.spec
        self._weights = Weights(checkpoint, budget)
        self._past = Past([], {})
        self._rounds_inputs = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1."""
        return self._head(self._final_norm(token_ids, Past([], {})))

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The last row of `logits`, [V]; keys and values of a prefix shared with the last call are not recomputed."""
        past = self._past
        shared = _shared_prefix(past.ids, token_ids[: len(token_ids) - 1])
        # Keys were rotated for the context they were computed in; LongRoPE turns them differently in a longer one.
        if self.spec.rope.factors(len(past.ids)) != self.spec.rope.factors(len(token_ids)):
            shared = 0
        past.cut(shared)
        row: np.ndarray = self._head(self._final_norm(token_ids, past)[-1:])[0]
        return row

    def predictions(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        rounded: bool,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Iterator[Predictions]:
        """Yield the predictions on each of the prompts' token ids, in order."""
        for index, prompt in enumerate(prompts):
            if progress is not None:
                progress(f"prompt {index + 1} of {len(prompts)}", index, len(prompts))
            yield Predictions(self.logits(prompt), self.rounded_logits(prompt) if rounded else None)

    def rounded_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """`logits` with every matrix's input rounded to int8: the coarsest arithmetic that an engine may use."""
        twin = copy(self)
        twin._rounds_inputs = True
        return twin.logits(token_ids)

    def trace(self, token_ids: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every stage of the forward pass in order, float32.

        "embedding", "block 0", ... and "final norm" are [T, E], residual streams after that stage; "logits" [T, V].
        """
        stages = dict(self._stages(token_ids, Past([], {})))
        stages["logits"] = self._head(stages["final norm"])
        return stages

    def _final_norm(self, token_ids: Sequence[int], past: Past) -> np.ndarray:
        *_, (_, x) = self._stages(token_ids, past)
        return x

    def _stages(self, token_ids: Sequence[int], past: Past) -> Iterator[tuple[str, np.ndarray]]:
        """Run the tokens that `past` does not hold yet, yield each stage's name and output, and extend `past`."""
        spec = self.spec
        new = self._checked(token_ids)[len(past.ids) :]
        positions = np.arange(len(past.ids), len(token_ids))
        angles = rope_angles(positions, spec.rope, spec.head_dim, len(token_ids))
        amplitude = np.float32(spec.rope.attention_factor)
        cos, sin = np.cos(angles) * amplitude, np.sin(angles) * amplitude  # (T, D/2)
        x = self._weight("model.embed_tokens")[new] * np.float32(spec.scale_emb)  # (T, E)
        yield "embedding", x
        s = np.float32(spec.residual_scale)
        for layer in range(spec.num_hidden_layers):
            block = f"model.layers.{layer}"
            x = x + s * self._attention(self._norm(x, f"{block}.input_layernorm"), layer, cos, sin, past)
            x = x + s * self._mlp(self._norm(x, f"{block}.post_attention_layernorm"), layer)
            yield f"block {layer}", x
        past.ids = list(token_ids)
        yield "final norm", self._norm(x, "model.norm")

    def _attention(self, x: np.ndarray, layer: int, cos: np.ndarray, sin: np.ndarray, past: Past) -> np.ndarray:
        """Attention of a block on normed x (T, E), its keys and values added to those of `past`."""
        block = f"model.layers.{layer}.self_attn"

        def heads(name: str) -> np.ndarray:
            flat = self._linear(x, f"{block}.{name}")  # (T, heads * D)
            split: np.ndarray = flat.reshape(len(x), -1, self.spec.head_dim).swapaxes(0, 1)
            return split  # (heads, T, D)

        q = rotate(heads("q_proj"), cos, sin)  # (H, T, D)
        k, v = past.extend(layer, rotate(heads("k_proj"), cos, sin), heads("v_proj"))  # (G, S, D)
        return self._linear(attend(q, k, v), f"{block}.o_proj")

    def _mlp(self, x: np.ndarray, layer: int) -> np.ndarray:
        """down(silu(gate(x)) * up(x)) of a block on normed x (T, E)."""
        mlp = f"model.layers.{layer}.mlp"
        gated = silu(self._linear(x, f"{mlp}.gate_proj")) * self._linear(x, f"{mlp}.up_proj")  # (T, F)
        return self._linear(gated, f"{mlp}.down_proj")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, self._weight(name), self.spec.rms_norm_eps)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """x @ W.T for W (out, in)."""
        product: np.ndarray = (round_to_int8(x) if self._rounds_inputs else x) @ self._weight(name).T
        return product

    def _weight(self, name: str) -> np.ndarray:
        return self._weights.whole(f"{name}.weight")

    def _head(self, x: np.ndarray) -> np.ndarray:
        name = "model.embed_tokens" if self.spec.tie_word_embeddings else "lm_head"
        return self._linear(x / np.float32(self.spec.logit_divisor), name)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        """The ids as a list; a negative one would silently index from the end of the embedding table."""
        ids = [int(token) for token in token_ids]
        if not ids:
            raise BadOption("no token ids to run")
        for token in ids:
            if not 0 <= token < self.spec.vocab_size:
                raise BadOption(f"token id {token} is outside the vocabulary of {self.spec.vocab_size}")
        return ids


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements in common."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


class ReferenceRuntime:
    """Reads through the exporters' own readers, so it runs whatever they read."""

    name = "reference"
    summary = "numpy float32, slow and readable: the oracle"
    formats = registry.names("exporters")
    architectures = ("minicpm", "llama")

    def missing(self) -> str | None:
        """Always None: numpy is all it needs."""
        return None

    def arithmetic(self, checkpoint: Checkpoint) -> str:
        """Everything in float32."""
        return "float32"

    def refuses(self, checkpoint: Checkpoint) -> None:
        """Always None: what was read can be run."""

    def open(self, path: Path) -> ReferenceSession:
        """Open any readable artifact; reading errors are raised as they are."""
        return ReferenceSession(registry.open_checkpoint(path))


RUNTIME = ReferenceRuntime()

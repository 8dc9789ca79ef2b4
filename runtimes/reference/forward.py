"""The forward pass, block by block over many prompts at once, so that a block's weights are read once for all of them.

T tokens of a prompt, N tokens of all, H heads, G key/value heads, D channels per head, E hidden size, F intermediate
size, V vocabulary.

    x = W_embed[ids] * scale_emb                                                                       (N, E)
    x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      per block, s = residual_scale
    logits = rms_norm(x) / logit_divisor @ W_head.T,  W_head = W_embed when embeddings are tied        (T, V)

Matrices are multiplied with the tokens of all prompts, one behind the other; positions, rotation and attention are
each prompt's own. Source: OpenBMB `modeling_minicpm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.models.spec import EMBEDDING, ModelSpec
from quantkit.runtimes.reference.formulas import attend, rms_norm, rope_angles, rotate, round_to_int8, silu
from quantkit.runtimes.reference.weights import Weights

TOKENS = 1024
"""Tokens that go through an MLP at a time: memory for (TOKENS, F) does not grow with the prompts."""

QUERIES = 256
"""Positions of a prompt that attend at a time: a run looks at no key that only later runs may see."""

SCORES = 1 << 22
"""Scores of a group of heads at a time, fewer positions if need be: memory does not grow with a prompt's square."""

MULTIPLICATIONS = 1 << 33
"""Of a product of matrices between two reports of progress: less than a second on a core of 20 GFLOP/s."""


Progress = Callable[[str, int, int], None]
"""Told what is being done, steps done, steps in all."""


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


@dataclass(frozen=True, slots=True)
class Span:
    """One prompt within a batch.

    rows: its T tokens among those of the batch. cos, sin: of their rotation, (T, D/2). past: what attention remembers
    of the tokens before them, and is to remember of them; None where they are the first, and nobody will ask.
    """

    rows: slice
    cos: np.ndarray
    sin: np.ndarray
    past: Past | None = None


@dataclass(slots=True)
class Batch:
    """Prompts that run together.

    x: the residual stream of all their tokens, (N, E). int8_run: how many values share a scale where every matrix's
    input is rounded to int8 (`round_to_int8`), None where it is not.
    """

    x: np.ndarray
    spans: Sequence[Span]
    int8_run: int | None = None

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """What matrices are given for `x`."""
        return x if self.int8_run is None else round_to_int8(x, self.int8_run)


class Work:
    """Tells what is being done and how much of it is done, in multiplications by weights."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._what = ""

    def begin(self, what: str) -> None:
        """Something else is being done from now on."""
        self._what = what
        self.advance(0)

    def advance(self, multiplications: int) -> None:
        """Some more are done; 0 says that the work goes on."""
        self._done += multiplications
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)


class ForwardPass:
    """A model's formulas with its weights. What it reads stays in memory if `keep`; the head does in any case.

    Weights and activations are float32. `work` is told of every product, and of every matrix that was read.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, work: Work, *, keep: bool) -> None:
        self._spec = spec
        self._weights = weights
        self._work = work
        self._keep = keep
        self._s = np.float32(spec.residual_scale)
        self._head = spec.head_name

    def embed(self, token_ids: Sequence[int]) -> np.ndarray:
        """x = W_embed[ids] * scale_emb, (N, E)."""
        self._work.begin("embedding")
        keep = self._keep or self._spec.tie_word_embeddings
        rows = self._weights.rows(EMBEDDING, np.array(token_ids), keep=keep)
        x: np.ndarray = rows * np.float32(self._spec.scale_emb)
        return x

    def span(self, rows: slice, context_length: int, past: Past | None = None) -> Span:
        """The last tokens of a prompt of `context_length`, as many as there are `rows`."""
        spec = self._spec
        positions = np.arange(context_length - (rows.stop - rows.start), context_length)
        angles = rope_angles(positions, spec.rope, spec.rotary_dim, context_length)
        amplitude = np.float32(spec.rope.attention_factor)
        return Span(rows, np.cos(angles) * amplitude, np.sin(angles) * amplitude, past)

    def stages(self, batches: Sequence[Batch]) -> Iterator[str]:
        """Take the residual streams of `batches` through the model; yields the name of each stage when it is done."""
        yield "embedding"
        layers = self._spec.num_hidden_layers
        for layer in range(layers):
            self._work.begin(f"block {layer + 1} of {layers}")
            self._add_attention(batches, layer)
            self._add_mlp(batches, layer)
            yield f"block {layer}"
        (weight,) = self._read("model", "norm")
        for batch in batches:
            batch.x = self._norm(batch.x, weight)
        yield "final norm"

    def logits(self, batch: Batch, rows: slice | np.ndarray) -> np.ndarray:
        """x / logit_divisor @ W_head.T of some rows of the normed x, (T, V); rows: a run of them, or their numbers."""
        x = batch.inputs(batch.x[rows] / np.float32(self._spec.logit_divisor))
        logits = np.empty((len(x), self._spec.vocab_size), np.float32)
        start = 0
        for piece in self._weights.pieces(self._head, keep=True):  # of the vocabulary
            stop = start + len(piece)
            self._multiply(x, piece, out=logits[:, start:stop])
            start = stop
        return logits

    def _add_attention(self, batches: Sequence[Batch], layer: int) -> None:
        """x = x + s * attention(rms_norm(x)) W_o^T for all prompts of a block."""
        names = ("input_layernorm", *(f"self_attn.{name}_proj" for name in "qkvo"))
        weight, W_q, W_k, W_v, W_o = self._read(f"model.layers.{layer}", *names)
        for batch in batches:
            x = batch.inputs(self._norm(batch.x, weight))
            q, k, v = (self._multiply(x, W) for W in (W_q, W_k, W_v))  # (N, H * D), (N, G * D) twice
            mixed = [self._attention(span, layer, q[span.rows], k[span.rows], v[span.rows]) for span in batch.spans]
            batch.x = batch.x + self._s * self._multiply(batch.inputs(np.concatenate(mixed)), W_o)

    def _attention(self, span: Span, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Attention of one prompt: q (T, H * D) on its own k and v (T, G * D) and those of its past, (T, H * D)."""
        q, k, v = (x.reshape(len(x), -1, self._spec.head_dim).swapaxes(0, 1) for x in (q, k, v))  # (heads, T, D)
        return self._attend(span, layer, rotate(q, span.cos, span.sin), rotate(k, span.cos, span.sin), v)

    def _attend(self, span: Span, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The same for queries (H, T, D) and keys (G, T, D) that are turned, and values (G, T, U): (T, H * U)."""
        if span.past is not None:
            k, v = span.past.extend(layer, k, v)  # (G, S, D)
        (heads, new, _), (groups, total, _) = q.shape, k.shape
        before = total - new
        mixed = []
        for run in _runs(new, max(1, min(QUERIES, SCORES // (heads // groups * total)))):
            seen = slice(before + run.stop)  # by the last position of the run
            mixed.append(attend(q[:, run], k[:, seen], v[:, seen]))
            self._work.advance(0)
        return np.concatenate(mixed)

    def _add_mlp(self, batches: Sequence[Batch], layer: int) -> None:
        """x = x + s * (silu(h W_gate^T) * h W_up^T) W_down^T with h = rms_norm(x), for all prompts of a block."""
        names = ("post_attention_layernorm", *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
        weight, W_gate, W_up, W_down = self._read(f"model.layers.{layer}", *names)
        for batch in batches:
            added = np.empty_like(batch.x)
            for run in _runs(len(added), TOKENS):
                h = batch.inputs(self._norm(batch.x[run], weight))
                gated = silu(self._multiply(h, W_gate)) * self._multiply(h, W_up)  # (TOKENS, F)
                self._multiply(batch.inputs(gated), W_down, out=added[run])
            batch.x = batch.x + self._s * added

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return rms_norm(x, weight, self._spec.rms_norm_eps)

    def _read(self, where: str, *names: str) -> list[np.ndarray]:
        """Weights of one part of the model."""
        weights = []
        for name in names:
            weights.append(self._weights.whole(f"{where}.{name}.weight", keep=self._keep))
            self._work.advance(0)
        return weights

    def _multiply(self, x: np.ndarray, W: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """x @ W.T for x (N, in) and W (out, in), a run of W's rows at a time so that progress is told."""
        product = np.empty((len(x), len(W)), np.float32) if out is None else out
        for run in _runs(len(W), max(1, MULTIPLICATIONS // x.size)):
            np.matmul(x, W[run].T, out=product[:, run])
            self._work.advance(len(x) * W[run].size)
        return product


def _runs(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))

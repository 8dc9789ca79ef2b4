"""What every candidate would cost the predictions: each weight is really quantized, and its error sent to the logits.

An error E of a layer's weights changes its outputs by δ = E x at every position, and the predicted distributions by a
Kullback-Leibler divergence of

    ½ Σ (g·δ)²                                                                              over positions

g a random direction of the logits, sent back to the output of the layer (`quantkit.calibration.fisher`); positions are
taken as independent of each other. It is what tr(G E H Eᵀ) approximates, without the assumption that g and x do not
depend on each other, which for gate and up is wrong.

The head needs no g: ½ (Σ p δ² - (Σ p δ)²) is exact to second order. The embedding's rows are added to what the first
block reads. A table that is both costs both.

Codes are the nearest ones on searched parameters (`quantkit.solver.search`). Where a solver will choose them with
error feedback, it brings the error down by nearly the same factor for all types: from tr(E H Eᵀ) to the part Σ D E²
that other columns cannot make up for, D the conditional variances of the inputs.

Where engines round to int8 what they multiply with the weights, that costs as well, in runs of 256 more than in runs of
32, and depends on the type: (x̂ - x) is put in the place of x, and W in that of E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from quantkit.calibration.fisher import POSITIONS, GradientPass, Told
from quantkit.calibration.folds import token_weights
from quantkit.calibration.samples import Samples
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, read_float32
from quantkit.models.spec import EMBEDDING, ModelSpec
from quantkit.progress import Progress
from quantkit.solver.cholesky import damped
from quantkit.solver.search import searched_codes
from quantkit.tensors.block_options import Candidate, Candidates
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import Scheme
from quantkit.threads import single_threaded_torch, torch_map

MEASURED_TOKENS = 4096
"""Of calibration text, as many sequences as have so many tokens, at least one."""
MOST_WEIGHTS = 1 << 19
"""Of a layer within the blocks that are quantized with every candidate."""
DAMPING = 0.1
"""Share of the mean diagonal that is added to H before it is factored; what `quantkit.solver.stages` has."""
Losses = Mapping[str, tuple[float, ...]]
"""By weight name, of every candidate in order: nats per position."""


def measured_losses(
    checkpoint: Checkpoint,
    candidates: Candidates,
    samples: Samples,
    *,
    feedback: bool,
    skip_positions: int = 0,
    threads: int = 1,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> Losses:
    """The loss of every candidate of every weight.

    Args:
        checkpoint: a dense model.
        candidates: what its weights may become; others are not looked at.
        samples: text to measure on, of which the first `MEASURED_TOKENS` are taken.
        feedback: whether a solver with error feedback will choose the codes.
        skip_positions: tokens at the start of every sequence that do not count.
        threads: how many to use; the result does not depend on it.
        bfloat16: whether forwards compute in it.
        progress: told of blocks times tokens.

    Raises:
        NonFiniteValues: NaN or infinity in a weight, with its name.
    """
    sequences = _first(samples.sequences)
    spec = checkpoint.spec
    roots = [float(count) ** 0.5 for count in token_weights(samples, skip_positions)[: len(sequences)]]
    text = _Text(sequences, roots, skip_positions, spec)
    measure = _Measure(feedback, threads)
    told = Told(progress, spec.num_hidden_layers * sum(map(len, sequences)))
    roles = tuple(role for group in spec.groups for role in group.roles)
    found: dict[str, tuple[float, ...]] = {}
    with torch.inference_mode(mode=False), torch.no_grad(), single_threaded_torch():
        passes = GradientPass(checkpoint, CPU, threads, bfloat16, told, roles, lambda x: x)
        for layer, gradients in passes.run(sequences, 0, text):
            for role in roles:
                name = spec.weight_name(layer, role)
                if name in candidates:
                    g = text.counted([g for g, _ in gradients[role]])
                    x = text.behind([x for _, x in gradients[role]])
                    own = candidates[name]
                    coupled = role in spec.weighed_roles
                    found[name] = measure.layer(read_float32(checkpoint.weights[name]), x, g, own, coupled=coupled)
        for slot in spec.slots():
            if slot.layer is None and slot.name in candidates:
                weight = read_float32(checkpoint.weights[slot.name])
                outer = _Outer(text, weight, reads=slot.name == spec.head_name, looks_up=slot.name == EMBEDDING)
                found[slot.name] = outer.losses(candidates[slot.name], measure)
    return {name: found[name] for name in candidates}


def _first(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    lengths = np.cumsum([len(sequence) for sequence in sequences])
    return list(sequences[: int(np.searchsorted(lengths, min(MEASURED_TOKENS, int(lengths[-1])))) + 1])


class _Text:
    """The sequences, what their tokens count, and what the pass told of both ends of the model."""

    def __init__(self, sequences: Sequence[np.ndarray], roots: Sequence[float], skip: int, spec: ModelSpec) -> None:
        self.skip = skip if any(len(x) > skip for x in sequences) else 0
        positions = sum(max(len(x) - self.skip, 0) for x in sequences)
        self.roots = [root / positions**0.5 for root in roots]
        self.ids = torch.cat([torch.from_numpy(x[self.skip :]) for x in sequences])
        self.scale_emb = spec.scale_emb
        self.read = self.looked_up = self.counts = torch.empty(0)

    def behind(self, parts: Sequence[Tensor]) -> Tensor:
        """What follows the skipped positions, of all sequences: [tokens, size]."""
        return torch.cat([x[self.skip :] for x in parts])

    def counted(self, parts: Sequence[Tensor]) -> Tensor:
        """The same, times the square root of what a token counts; all tokens together count about 1."""
        return torch.cat([x[self.skip :].float() * root for x, root in zip(parts, self.roots, strict=True)])

    def head(self, first: int, read: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See `quantkit.calibration.fisher.Ends`."""
        del first
        self.read = self.behind([h for h, _ in read])
        self.counts = self.counted([torch.ones_like(p) for _, p in read])
        self.uncertain = self.behind([p for _, p in read])

    def embedding(self, first: int, gradients: Sequence[Tensor]) -> None:
        """See `quantkit.calibration.fisher.Ends`."""
        del first
        self.looked_up = self.counted(gradients) * self.scale_emb


@dataclass(frozen=True, slots=True)
class _Measure:
    """Losses of one layer within the blocks."""

    feedback: bool
    threads: int

    def layer(
        self, weight: np.ndarray, x: Tensor, g: Tensor, candidates: Sequence[Candidate], *, coupled: bool
    ) -> tuple[float, ...]:
        """Of float32 weights [rows, cols] that read x [tokens, cols]; g [tokens, rows].

        coupled: whether the solver also lets rows make up for each other.

        Of a large matrix some rows stand for all: their errors do not depend on each other.
        """
        W = torch.from_numpy(weight)
        counts = g.square().sum(-1, keepdim=True)
        H = x.T @ (x * (counts / counts.mean().clamp(min=1e-30)))
        energy = H.diagonal()
        kept = conditional_variances(H) if self.feedback else None
        rows_gain = _rows_gain(g * x.norm(dim=-1, keepdim=True)) if self.feedback and coupled else 1.0
        runs = {one.input_run for one in candidates if one.input_run is not None}
        rounding = {run: _squares(g, (rounded_inputs(x, run) - x) @ W.T) for run in runs}
        step = max(1, weight.size // MOST_WEIGHTS)
        some, sent = weight[::step], g[:, ::step]
        share = len(weight) / len(some)

        def loss(candidate: Candidate) -> float:
            E = _error(some, candidate.scheme, energy)
            lost = 0.0 if E is None else _squares(sent, x @ E.T) * share
            if E is not None and kept is not None:
                lost *= _gain(E, H, kept) * rows_gain
            return lost + (0.0 if candidate.input_run is None else rounding[candidate.input_run])

        return tuple(torch_map(loss, candidates, self.threads))


def _squares(g: Tensor, change: Tensor) -> float:
    return float((g * change).sum(-1, dtype=torch.float64).square().sum()) / 2


def _error(weight: np.ndarray, scheme: Scheme | None, energy: Tensor) -> Tensor | None:
    """Q - W of the nearest codes on searched parameters."""
    if scheme is None:
        return None
    return torch.from_numpy(_searched(weight, scheme, energy).dequantized() - weight)


def _searched(weight: np.ndarray, scheme: Scheme, energy: Tensor) -> QuantizedTensor:
    usable = energy if bool(torch.isfinite(energy).all()) and float(energy.max()) > 0 else torch.ones_like(energy)
    return searched_codes(weight, scheme, usable, 1)


def conditional_variances(H: Tensor) -> Tensor:
    """Of every input, given those that are rounded after it, in the order of their energy: [cols]."""
    order = torch.argsort(H.diagonal(), stable=True)
    H = damped(H, DAMPING)
    factor, problem = torch.linalg.cholesky_ex(H[order][:, order])
    if int(problem):
        return H.diagonal()
    variances = torch.empty_like(H.diagonal())
    variances[order] = factor.diagonal().square()
    return variances


def _gain(E: Tensor, H: Tensor, kept: Tensor) -> float:
    """By what feedback multiplies the error of an output, about."""
    energy = float(((E @ H) * E).sum(dtype=torch.float64))
    return min(float((E.square() @ kept).sum(dtype=torch.float64)) / energy, 1.0) if energy > 0 else 1.0


def _rows_gain(g: Tensor) -> float:
    """The same for feedback from row to row, g [tokens, rows]."""
    G = g.T @ g
    power = float(G.diagonal().sum())
    return min(float(conditional_variances(G).sum()) / power, 1.0) if power > 0 else 1.0


def rounded_inputs(x: Tensor, run: int) -> Tensor:
    """x [tokens, cols] as engines with integer kernels see it: runs of int8 with a scale each."""
    width = run if x.shape[1] % run == 0 else x.shape[1]
    runs = x.view(len(x), -1, width)
    scale = runs.abs().amax(-1, keepdim=True) / 127
    return (runs / scale.clamp(min=1e-30)).round_().mul_(scale).view_as(x)


@dataclass(frozen=True, slots=True)
class _Outer:
    """Losses of embedding and head. reads: it makes the logits. looks_up: its rows are what the first block reads."""

    text: _Text
    weight: np.ndarray
    reads: bool
    looks_up: bool

    def losses(self, candidates: Sequence[Candidate], measure: _Measure) -> tuple[float, ...]:
        """As `_Measure.layer`."""
        text, head = self.text, torch.from_numpy(self.weight)
        H = torch.zeros(self.weight.shape[1], self.weight.shape[1])
        if self.reads:
            counted = text.read * text.counts * text.uncertain.sqrt()
            H += counted.T @ counted
        if self.looks_up:
            H += text.looked_up.T @ text.looked_up
        kept = conditional_variances(H) if measure.feedback else None
        rounding: dict[int | None, float] = {}
        for run in {one.input_run for one in candidates if one.input_run is not None and self.reads}:
            rounding[run] = self._logits(head, partial(self._rounded, head, run))

        def loss(candidate: Candidate) -> float:
            E = _error(self.weight, candidate.scheme, H.diagonal())
            lost = 0.0
            if E is not None and self.looks_up:
                lost += _squares(text.looked_up, E[text.ids])
            if E is not None and self.reads:
                lost += self._logits(head, lambda h: h @ E.T)
            if E is not None and kept is not None:
                lost *= _gain(E, H, kept)
            return lost + rounding.get(candidate.input_run, 0.0)

        return tuple(torch_map(loss, candidates, measure.threads))

    @staticmethod
    def _rounded(head: Tensor, run: int, h: Tensor) -> Tensor:
        return (rounded_inputs(h, run) - h) @ head.T

    def _logits(self, head: Tensor, change: Callable[[Tensor], Tensor]) -> float:
        """½ of the variance under p of what `change` tells of the logits, over all positions."""
        total, text = 0.0, self.text
        for h, count in zip(_pieces(text.read), _pieces(text.counts), strict=True):
            p, part = (h @ head.T).softmax(-1), change(h)
            mean = (p * part).sum(-1, keepdim=True)
            total += float(((p * (part - mean).square_()).sum(-1, keepdim=True) * count.square()).sum()) / 2
        return total


def _pieces(x: Tensor) -> list[Tensor]:
    return [x[start : start + POSITIONS] for start in range(0, len(x), POSITIONS)]

"""How much a model's predictions change when the output of one of its layers does.

A small change δ of a layer's output at one position moves the predicted distributions by a Kullback-Leibler divergence
of ½ δᵀ F δ, F = Jᵀ (diag p - p pᵀ) J summed over the positions it reaches, J the derivative of their logits. With G the
mean of F over positions, an error E of the weights [rows, cols] costs about

    tr(G E H Eᵀ)                                                        (Martens and Grosse 2015, "K-FAC")

instead of GPTQ's tr(E H Eᵀ), for which all outputs are alike. (Tseng et al. 2025, "YAQA", round by such a product too.)
Positions with long inputs x count more in G, |x|² times: what is approximated is the sum of F's products with x xᵀ.

G needs no labels: the difference of two tokens drawn from p, as unit vectors, has the covariance 2 (diag p - p pᵀ). A
sum v of such differences for every position, sent backwards through the model, arrives at a layer's output as g, and
G = mean |x|² g gᵀ.

The length of g also tells which positions matter: statistics of inputs count each |g| times
(`quantkit.calibration.activations`). That is the square root of what the approximation asks for, because a single g
scatters.

gate and up have no G here: which of their outputs matter changes from token to token, the product does not hold, and
nothing was gained. Blocks are read one at a time, forwards and then backwards, for some thousand tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantkit.calibration.activations import embedded
from quantkit.calibration.autocast import rounded_products
from quantkit.calibration.samples import WAVE_TOKENS, weighed_tokens
from quantkit.calibration.statistics import LayerStatistics, input_statistics
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.loading import CPU, load_block, load_head
from quantkit.models.spec import Role
from quantkit.models.torch_model import Block, rotary_tables
from quantkit.progress import Progress, unwatched
from quantkit.threads import torch_map

PAIRS = 16
"""Differences in a sum: more would not bring it much closer to a normal distribution, whose squares scatter least."""
POSITIONS = 64
"""Positions whose logits are in memory at a time."""
FORWARDS = 0.25
"""Share of a block's time on the way forwards; on the way back it is run again, and its gradients follow."""
Tables = Mapping[int, tuple[Tensor, Tensor]]
"""cos and sin for sequences of each length."""


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivities:
    """What the predictions make of one block.

    outputs: G of its layers, float32 [rows, rows].
    positions: |g| of every position of every sequence that was used, [tokens, 1], at the outputs of o and down, which
        stand for the layers before them as well.
    """

    outputs: Mapping[Role, Tensor]
    positions: Mapping[Role, list[Tensor]]


@dataclass(slots=True, eq=False)
class OuterStatistics:
    """What embedding and head are quantized by: sums over positions, float32 [hidden, hidden].

    head: Σ (1 - Σ p²) h hᵀ of what the head reads: a row's logit is off by h times its error, and p (1 - p) of a token
        is what its logit counts. embedding: scale_emb² Σ g gᵀ, g at what the first block reads: one row of the table is
        added there. A table that is both takes the sum. All rows share them: what they count by, how often a token
        stands in the text or may follow, scales the error of a row as a whole.
    """

    head: Tensor
    embedding: Tensor
    tokens: int = 0

    @classmethod
    def none_yet(cls, hidden: int, device: torch.device = CPU) -> OuterStatistics:
        """Sums of nothing."""
        return cls(torch.zeros(hidden, hidden, device=device), torch.zeros(hidden, hidden, device=device))

    def of(self, role: Role, *, tied: bool) -> LayerStatistics:
        """The statistics by which the matrix of this role is quantized."""
        if role is Role.LM_HEAD:
            return LayerStatistics(self.head, self.tokens)
        return LayerStatistics(self.embedding + self.head if tied else self.embedding, self.tokens)


def sensitivities(
    checkpoint: Checkpoint,
    sequences: Sequence[np.ndarray],
    *,
    counts: Sequence[float] | None = None,
    outer: OuterStatistics | None = None,
    skip_positions: int = 0,
    threads: int = 1,
    device: torch.device = CPU,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> list[Sensitivities]:
    """The sensitivities of every block, G of `ModelSpec.weighed_roles`.

    Args:
        checkpoint: a dense model.
        sequences: token ids; the first of them are used, see `weighed_tokens`.
        counts: how much each sequence's tokens count in G; None = alike.
        outer: is added to, if given.
        skip_positions: tokens at the start of every sequence that do not count in G.
        threads: how many to use; the result does not depend on it.
        device: where it is computed.
        bfloat16: whether in it (`quantkit.calibration.autocast`).
        progress: told of blocks times tokens, forwards and backwards.

    Raises:
        NonFiniteValues: NaN or infinity in a weight, with its name.
    """
    sequences = _first(sequences)
    spec = checkpoint.spec
    found = [Sensitivities({}, {role: [] for role in spec.writers}) for _ in range(spec.num_hidden_layers)]
    # All of it before the pass: long-lived memory between what comes and goes would keep that from being reused.
    sums = [
        {role: torch.zeros((spec.layer_shape(role)[0],) * 2, device=device) for role in spec.weighed_roles}
        for _ in found
    ]
    tokens = 0
    roots = [1.0] * len(sequences) if counts is None else [math.sqrt(count) for count in counts]
    told = Told(progress, checkpoint.spec.num_hidden_layers * sum(map(len, sequences)))
    with torch.inference_mode(mode=False), torch.no_grad():
        passes = GradientPass(checkpoint, device, threads, bfloat16, told, spec.weighed_roles, _lengths)
        before = _Before(outer, checkpoint.spec.scale_emb, roots, skip_positions, threads)
        for first, wave in _waves(sequences):
            for layer, gradients in passes.run(wave, first, before):
                for role in spec.weighed_roles:
                    seen = [
                        (g * length * root)[skip_positions:]
                        for (g, length), root in zip(gradients[role], roots[first:], strict=False)
                    ]
                    sums[layer][role] += input_statistics(seen, seen[0].shape[1], threads, device).hessian
                for role in spec.writers:
                    found[layer].positions[role].extend(g.norm(dim=-1, keepdim=True) for g, _ in gradients[role])
            tokens += sum(max(len(x) - skip_positions, 0) for x in wave)
    if outer is not None:
        outer.tokens = tokens
    for total in (total for by_role in sums for total in by_role.values()):
        total.div_(max(tokens, 1))
    return [replace(one, outputs=by_role) for one, by_role in zip(found, sums, strict=True)]


def _first(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many of the sequences as are needed, at least one."""
    lengths = np.cumsum([len(sequence) for sequence in sequences])
    return list(sequences[: int(np.searchsorted(lengths, weighed_tokens(int(lengths[-1])))) + 1])


def _waves(sequences: Sequence[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The sequences in runs of about WAVE_TOKENS tokens, each with the number of its first."""
    wave: list[np.ndarray] = []
    for number, sequence in enumerate(sequences, start=1):
        wave.append(sequence)
        if sum(map(len, wave)) >= WAVE_TOKENS or number == len(sequences):
            yield number - len(wave), wave
            wave = []


class Told:
    """Adds up blocks times tokens and tells `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress or unwatched
        self.total = total
        self.done = 0.0

    def add(self, sequences: Sequence[np.ndarray], share: float) -> None:
        """So much of a block's work is done for these sequences."""
        self.done += share * sum(map(len, sequences))
        self.progress("Fisher pass", self.done, self.total)


class Ends(Protocol):
    """Who is told of what lies before the first block and behind the last."""

    def head(self, first: int, read: Sequence[tuple[Tensor, Tensor]]) -> None:
        """What the head reads, [tokens, hidden], and 1 - Σ p², [tokens, 1], of sequences from number `first` on."""
        ...

    def embedding(self, first: int, gradients: Sequence[Tensor]) -> None:
        """g at what the first block reads, [tokens, hidden]."""
        ...


def _lengths(x: Tensor) -> Tensor:
    lengths: Tensor = x.norm(dim=-1, keepdim=True)
    return lengths


@dataclass(frozen=True, slots=True)
class _Before:
    """Adds to the statistics of embedding and head, if they are wanted."""

    outer: OuterStatistics | None
    scale_emb: float
    roots: Sequence[float]
    skip: int
    threads: int

    def head(self, first: int, read: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See `Ends`."""
        if self.outer is not None:
            self._add(self.outer.head, first, [h * counted.sqrt() for h, counted in read])

    def embedding(self, first: int, gradients: Sequence[Tensor]) -> None:
        """See `Ends`."""
        if self.outer is not None:
            self._add(self.outer.embedding, first, [g * self.scale_emb for g in gradients])

    def _add(self, total: Tensor, first: int, rows: Sequence[Tensor]) -> None:
        seen = [(x.float() * root)[self.skip :] for x, root in zip(rows, self.roots[first:], strict=False)]
        total += input_statistics(seen, len(total), self.threads, total.device).hessian


@dataclass(frozen=True, slots=True)
class GradientPass:
    """The way through the blocks and back.

    roles: the layers whose gradients are wanted. kept: what of their inputs, float32 [tokens, cols], is yielded.
    """

    checkpoint: Checkpoint
    device: torch.device
    threads: int
    bfloat16: bool
    told: Told
    roles: Sequence[Role]
    kept: Callable[[Tensor], Tensor]

    def run(
        self, sequences: Sequence[np.ndarray], first: int, before: Ends
    ) -> Iterator[tuple[int, dict[Role, list[tuple[Tensor, Tensor]]]]]:
        """Yield every block's number, last first, with g [tokens, rows] of its layers, and what is kept of their x.

        first: the number of the first sequence; each one's number seeds its probes. before: told of both ends.
        """
        spec = self.checkpoint.spec
        tables = {length: rotary_tables(spec, 0, length, self.device) for length in map(len, sequences)}
        states = [[x.to(self.device) for x in embedded(self.checkpoint, sequences)]]
        for layer in range(spec.num_hidden_layers):
            states.append(self._forwards(load_block(self.checkpoint, layer).to(self.device), states[-1], tables))
            self.told.add(sequences, FORWARDS)
        gradients = self._of_logits(states.pop(), first, before)
        for layer in reversed(range(spec.num_hidden_layers)):
            block = load_block(self.checkpoint, layer).to(self.device)
            gradients, found = self._through(block, states.pop(), gradients, tables)
            del block  # before the next one is read
            self.told.add(sequences, 1 - FORWARDS)
            yield layer, found
        before.embedding(first, gradients)

    def _forwards(self, block: Block, states: Sequence[Tensor], tables: Tables) -> list[Tensor]:
        def forwards(x: Tensor) -> Tensor:
            with rounded_products(self.device, bfloat16=self.bfloat16):
                y = block(x[None], *tables[len(x)])
            made: Tensor = y[0]
            return made

        return torch_map(forwards, states, self.threads)

    def _of_logits(self, states: Sequence[Tensor], first: int, before: Ends) -> list[Tensor]:
        """Random v at the logits of every sequence, sent back to the residual stream after all blocks."""
        spec = self.checkpoint.spec
        norm, head = load_head(self.checkpoint)
        norm = norm.to(self.device)
        head = head.to(self.device, torch.bfloat16 if self.bfloat16 else torch.float32)

        def backwards(numbered: tuple[int, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            number, x = numbered
            random = torch.Generator().manual_seed(number)
            with torch.inference_mode(mode=False), torch.enable_grad():
                x = x.clone().requires_grad_()
                y = norm(x) / spec.logit_divisor
                pieces = [_probe(part, head, random) for part in y.detach().split(POSITIONS)]
                sent, counted = (torch.cat(parts) for parts in zip(*pieces, strict=True))
                return torch.autograd.grad(y, x, sent)[0], (y.detach(), counted)

        results = torch_map(backwards, enumerate(states, first), self.threads)
        before.head(first, [read for _, read in results])
        return [gradient for gradient, _ in results]

    def _through(
        self, block: Block, states: Sequence[Tensor], gradients: Sequence[Tensor], tables: Tables
    ) -> tuple[list[Tensor], dict[Role, list[tuple[Tensor, Tensor]]]]:
        """Gradients in front of `block`, and g and what is kept of x of its layers, per sequence."""
        made: dict[tuple[int, Role], tuple[Tensor, Tensor]] = {}
        roles = self.roles
        modules = {role: block.layer(role) for role in roles}

        def keep(role: Role, x: Tensor, output: Tensor) -> None:
            # Sequences run at the same time, each on one thread.
            made[get_ident(), role] = output, self.kept(x[0].detach().float())

        def backwards(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            state, gradient = pair
            with torch.inference_mode(mode=False), torch.enable_grad():
                x = state.clone()[None].requires_grad_()
                with rounded_products(self.device, bfloat16=self.bfloat16):
                    y = block(x, *tables[len(state)])
                outputs, lengths = zip(*(made.pop((get_ident(), role)) for role in roles), strict=True)
                before, *found = torch.autograd.grad(y, [x, *outputs], gradient.clone()[None])
                return before[0], [(g[0].float(), length) for g, length in zip(found, lengths, strict=True)]

        hooks = [
            module.register_forward_hook(lambda _, inputs, output, role=role: keep(role, inputs[0], output))
            for role, module in modules.items()
        ]
        results = torch_map(backwards, zip(states, gradients, strict=True), self.threads)
        for hook in hooks:
            hook.remove()
        by_role = {role: [found[i] for _, found in results] for i, role in enumerate(roles)}
        return [before for before, _ in results], by_role


def _probe(hidden: Tensor, head: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """v @ head for hidden states [positions, hidden] in front of the head [vocab, hidden], and 1 - Σ p² [positions, 1].

    NaN if logits overflow.
    """
    with torch.no_grad():
        p = (hidden.to(head) @ head.T).float().softmax(-1).cpu()
        if not bool(torch.isfinite(p.sum())):
            return torch.full_like(hidden, torch.nan), torch.full_like(hidden[:, :1], torch.nan)
        tokens = torch.multinomial(p, 2 * PAIRS, replacement=True, generator=random).to(head.device)
        first, second = (functional.embedding_bag(half, head, mode="sum").float() for half in tokens.chunk(2, dim=1))
        counted = 1 - p.square().sum(-1, keepdim=True)
        return (first - second) / math.sqrt(2 * PAIRS), counted.clamp(min=0).to(head.device)

"""How much a model's predictions change when the output of one of its layers does.

A small change δ of a layer's output at one position moves the predicted distributions by a Kullback-Leibler divergence
of ½ δᵀ F δ, F = Jᵀ (diag p - p pᵀ) J summed over the positions it reaches, J the derivative of their logits. With G the
mean of F over positions, an error E of the weights [rows, cols] costs about

    tr(G E H Eᵀ)                                                        (Martens and Grosse 2015, "K-FAC")

instead of GPTQ's tr(E H Eᵀ), for which all outputs are alike. (Tseng et al. 2025, "YAQA", round by such a product too.)

G needs no labels: the difference of two tokens drawn from p, as unit vectors, has the covariance 2 (diag p - p pᵀ). A
sum v of such differences for every position, sent backwards through the model, arrives at a layer's output as g, and
G = mean g gᵀ.

gate and up have no G here: which of their outputs matter changes from token to token, the product does not hold, and
nothing was gained. Blocks are read one at a time, forwards and then backwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from threading import get_ident

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantkit.calibration import CPU, embedded, input_statistics
from quantkit.calibration_text import weighed_tokens
from quantkit.checkpoint import Checkpoint
from quantkit.family import LAYER_NAMES, WEIGHED_ROLES, Role
from quantkit.loading import load_block, read_float32
from quantkit.model import Block, RMSNorm, rotary_tables
from quantkit.parallel import torch_map

PAIRS = 16
"""Differences in a sum: more would not bring it much closer to a normal distribution, whose squares scatter least."""
POSITIONS = 64
"""Positions whose logits are in memory at a time."""

Tables = Mapping[int, tuple[Tensor, Tensor]]
"""cos and sin for sequences of each length."""
Sensitivities = Mapping[Role, Tensor]
"""G of the layers of one block, float32 [rows, rows]."""


def sensitivities(
    checkpoint: Checkpoint,
    sequences: Sequence[np.ndarray],
    *,
    skip_positions: int = 0,
    threads: int = 1,
    device: torch.device = CPU,
) -> list[Sensitivities]:
    """G of `WEIGHED_ROLES` of every block.

    Args:
        checkpoint: a dense model.
        sequences: token ids; the first of them are used, see `weighed_tokens`.
        skip_positions: tokens at the start of every sequence that do not count.
        threads: how many to use; the result does not depend on it.
        device: where it is computed.

    Raises:
        NonFiniteValues: NaN or infinity in a weight, with its name.
    """
    sequences = _first(sequences)
    layers = range(checkpoint.spec.num_hidden_layers)
    tables = {length: rotary_tables(checkpoint.spec, 0, length, device) for length in map(len, sequences)}
    with torch.inference_mode(mode=False), torch.no_grad():
        states = [[x.to(device) for x in embedded(checkpoint, sequences)]]
        for layer in layers:
            states.append(_forwards(load_block(checkpoint, layer).to(device), states[-1], tables, threads))
        gradients = _of_logits(checkpoint, states.pop(), threads)
        found: list[Sensitivities] = []
        for layer in reversed(layers):
            block = load_block(checkpoint, layer).to(device)
            gradients, outputs = _through(block, states.pop(), gradients, tables, threads)
            del block  # before the next one is read
            seen = {role: [g[skip_positions:] for g in outputs[role]] for role in WEIGHED_ROLES}
            found.append({role: _mean_square(parts, threads, device) for role, parts in seen.items()})
    return found[::-1]


def _first(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many of the sequences as are needed, at least one."""
    lengths = np.cumsum([len(sequence) for sequence in sequences])
    return list(sequences[: int(np.searchsorted(lengths, weighed_tokens(int(lengths[-1])))) + 1])


def _forwards(block: Block, states: Sequence[Tensor], tables: Tables, threads: int) -> list[Tensor]:
    def forwards(x: Tensor) -> Tensor:
        y, _ = block(x[None], *tables[len(x)])
        made: Tensor = y[0]
        return made

    return torch_map(forwards, states, threads)


def _of_logits(checkpoint: Checkpoint, states: Sequence[Tensor], threads: int) -> list[Tensor]:
    """Random v at the logits of every sequence, sent back to the residual stream [tokens, hidden] after all blocks."""
    spec, device = checkpoint.spec, states[0].device
    norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
    weights = checkpoint.weights
    norm.weight.copy_(torch.from_numpy(read_float32(weights["model.norm.weight"])))
    norm = norm.to(device).requires_grad_(False)
    name = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    head = torch.from_numpy(read_float32(weights[name])).to(device)

    def backwards(numbered: tuple[int, Tensor]) -> Tensor:
        number, x = numbered
        random = torch.Generator().manual_seed(number)
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = x.clone().requires_grad_()
            y = norm(x) / spec.logit_divisor
            pieces = [_probe(part, head, random) for part in y.detach().split(POSITIONS)]
            return torch.autograd.grad(y, x, torch.cat(pieces))[0]

    return torch_map(backwards, enumerate(states), threads)


def _probe(hidden: Tensor, head: Tensor, random: torch.Generator) -> Tensor:
    """v @ head for hidden states [positions, hidden] in front of the head [vocab, hidden]; NaN if logits overflow."""
    with torch.no_grad():
        p = (hidden @ head.T).softmax(-1).cpu()
        if not bool(torch.isfinite(p.sum())):
            return torch.full_like(hidden, torch.nan)
        tokens = torch.multinomial(p, 2 * PAIRS, replacement=True, generator=random).to(head.device)
        first, second = (functional.embedding_bag(half, head, mode="sum") for half in tokens.chunk(2, dim=1))
        return (first - second) / math.sqrt(2 * PAIRS)


def _through(
    block: Block,
    states: Sequence[Tensor],
    gradients: Sequence[Tensor],
    tables: Tables,
    threads: int,
) -> tuple[list[Tensor], dict[Role, list[Tensor]]]:
    """Gradients in front of `block` and at the outputs of its layers, each [tokens, rows] per sequence."""
    made: dict[tuple[int, Role], Tensor] = {}
    modules = {role: block.get_submodule(LAYER_NAMES[role].removesuffix(".weight")) for role in WEIGHED_ROLES}

    def keep(role: Role, output: Tensor) -> None:
        made[get_ident(), role] = output  # sequences run at the same time, each on one thread

    def backwards(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        state, gradient = pair
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = state.clone()[None].requires_grad_()
            y, _ = block(x, *tables[len(state)])
            outputs = [made.pop((get_ident(), role)) for role in WEIGHED_ROLES]
            return tuple(g[0] for g in torch.autograd.grad(y, [x, *outputs], gradient.clone()[None]))

    hooks = [
        module.register_forward_hook(lambda _, __, output, role=role: keep(role, output))
        for role, module in modules.items()
    ]
    found = torch_map(backwards, zip(states, gradients, strict=True), threads)
    for hook in hooks:
        hook.remove()
    return [parts[0] for parts in found], {
        role: [parts[1 + i] for parts in found] for i, role in enumerate(WEIGHED_ROLES)
    }


def _mean_square(gradients: Sequence[Tensor], threads: int, device: torch.device) -> Tensor:
    statistics = input_statistics(gradients, gradients[0].shape[1], threads, device)
    return statistics.hessian / max(statistics.tokens, 1)

"""Models with random quantized weights, in memory: the same ones every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from quantkit.models.checkpoint import Checkpoint
from quantkit.models.recognition import parse_config
from quantkit.models.spec import LINEAR_ROLES, TensorSlot
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.scheme import SCALE_DTYPES
from quantkit.tensors.schemes.affine_groups import AffineGroups
from quantkit.tensors.views import QuantizedView, TensorView, Weight
from tests.support.memory import memory_checkpoint, random_arrays

BF16 = np.dtype(ml_dtypes.bfloat16)
Choice = Callable[[TensorSlot], AffineGroups | None]
"""What a weight becomes; None = it stays dense."""


def linears(spec: AffineGroups) -> Choice:
    """Quantize every linear layer of the blocks with `spec`, nothing else."""
    return lambda slot: spec if slot.role in LINEAR_ROLES else None


def random_quantized(shape: tuple[int, ...], spec: AffineGroups, seed: int) -> QuantizedTensor:
    """Codes and zeros over their whole range, scales of both signs; the first group's scale is zero."""
    rows, cols = shape
    rng = np.random.default_rng(seed)
    groups = (rows, spec.groups(cols))
    zero = np.full(groups, spec.midpoint) if spec.symmetric else rng.integers(0, spec.levels, groups)
    scale = rng.normal(0, cols**-0.5 / spec.midpoint, groups)
    scale[0, 0] = 0
    return QuantizedTensor(
        spec,
        rng.integers(0, spec.levels, shape).astype(np.uint8),
        {"scale": scale.astype(SCALE_DTYPES[spec.scale_dtype]), "zero": zero.astype(np.uint8)},
    )


def fake_quantized(model: Checkpoint) -> Checkpoint:
    """The same model with what its codes stand for, in bfloat16 as far as that holds the scales: as BitCPM is."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, view in model.weights.items():
        if isinstance(view, QuantizedView):
            tensor = view.read()
            scale = tensor.scale.astype(BF16).astype(np.float16)
            values = replace(tensor, arrays={**tensor.arrays, "scale": scale}).dequantized().astype(BF16)
            weights[name] = TensorView(name, BF16, view.shape, partial(rows_of, values))
    return replace(model, weights=weights)


def rows_of(values: np.ndarray, start: int, stop: int) -> np.ndarray:
    return values[start:stop]


def quantized_model(
    config: Mapping[str, Any],
    choose: Choice,
    *,
    files: Mapping[str, bytes] | None = None,
    replaced: Mapping[str, QuantizedTensor] | None = None,
) -> Checkpoint:
    """A random model of `config`, dense weights in bfloat16; `replaced` are put in the place of what was drawn."""
    spec = parse_config(config)
    arrays: dict[str, np.ndarray | QuantizedTensor] = dict(random_arrays(spec, dtype=BF16))
    for seed, slot in enumerate(spec.slots()):
        grid = choose(slot)
        if grid is not None:
            arrays[slot.name] = random_quantized(slot.shape, grid, seed)
    return memory_checkpoint(config, {**arrays, **(replaced or {})}, files=files)


def one_scale_each(model: Checkpoint) -> Checkpoint:
    """`model`, every quantized weight with its own second scale for all groups."""
    weights: dict[str, Weight] = dict(model.weights)
    for name, view in model.weights.items():
        if isinstance(view, QuantizedView):
            tensor = view.read()
            scale = np.full_like(tensor.scale, tensor.scale.flat[1])
            same = QuantizedTensor(tensor.scheme, tensor.codes, {"scale": scale, "zero": tensor.zero})
            weights[name] = replace(view, read=lambda same=same: same)
    return replace(model, weights=weights)

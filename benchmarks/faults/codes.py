"""Faults of the codes: integers, scales and zero points that are not those of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.faults.fault import CODE_TRIALS, SUBTLE_CODE_TRIALS, Fault, Level, NotApplicable
from quantkit.tensors.quantized_tensor import QuantizedTensor
from quantkit.tensors.schemes.affine_groups import AffineGroups

TENSOR = "model.layers.1.self_attn.v_proj.weight"
LARGE = "model.layers.0.mlp.down_proj.weight"
Change = Callable[[QuantizedTensor], QuantizedTensor]


def scheme_of(tensor: QuantizedTensor) -> AffineGroups:
    """Its grid; quantized folders hold no other kind."""
    assert isinstance(tensor.scheme, AffineGroups)
    return tensor.scheme


def with_codes(tensor: QuantizedTensor, codes: np.ndarray) -> QuantizedTensor:
    """The same grid, other codes."""
    return replace(tensor, codes=codes)


def with_array(tensor: QuantizedTensor, name: str, values: np.ndarray) -> QuantizedTensor:
    """The same codes, other scales or zero points."""
    return replace(tensor, arrays={**tensor.arrays, name: values})


def shifted(share: float, steps: int) -> Change:
    """A share of the codes moved by so many steps, the other way where they would leave the grid, or to its end."""

    def changed(tensor: QuantizedTensor) -> QuantizedTensor:
        chosen = np.random.default_rng(5).random(tensor.codes.shape) < share
        codes = tensor.codes.astype(np.int16)
        up = codes + steps < scheme_of(tensor).levels
        moved = np.where(up, codes + steps, np.maximum(codes - steps, 0))
        return with_codes(tensor, np.where(chosen, moved, codes).astype(np.uint8))

    return changed


def swap_neighbours(tensor: QuantizedTensor) -> QuantizedTensor:
    """Every pair of columns exchanged: the two nibbles of a byte the wrong way round."""
    pairs = tensor.codes.reshape(tensor.shape[0], -1, 2)
    return with_codes(tensor, np.ascontiguousarray(pairs[:, :, ::-1]).reshape(tensor.shape))


def swap_halves(tensor: QuantizedTensor) -> QuantizedTensor:
    """The halves of every 32 codes exchanged: low nibbles for high ones in ggml's order."""
    halves = tensor.codes.reshape(tensor.shape[0], -1, 2, 16)
    return with_codes(tensor, np.ascontiguousarray(halves[:, :, ::-1]).reshape(tensor.shape))


def reverse_row(tensor: QuantizedTensor) -> QuantizedTensor:
    """The codes of one row from back to front."""
    codes = tensor.codes.copy()
    codes[7] = codes[7, ::-1]
    return with_codes(tensor, codes)


def zero_last_group(tensor: QuantizedTensor) -> QuantizedTensor:
    """The last group of every row stands for zeros."""
    width = scheme_of(tensor).group_width(tensor.shape[1])
    codes = tensor.codes.copy()
    codes[:, -width:] = np.repeat(tensor.zero[:, -1:], width, axis=1)
    return with_codes(tensor, codes)


def change_one_code(tensor: QuantizedTensor) -> QuantizedTensor:
    """A single code by a single step."""
    codes = tensor.codes.copy()
    codes[3, 5] = codes[3, 5] - 1 if codes[3, 5] else 1
    return with_codes(tensor, codes)


def with_scales(change: Callable[[np.ndarray], None]) -> Change:
    """Scales changed in place."""

    def changed(tensor: QuantizedTensor) -> QuantizedTensor:
        scale = tensor.scale.copy()
        change(scale)
        return with_array(tensor, "scale", scale)

    return changed


def double_one(scale: np.ndarray) -> None:
    """One group twice as wide."""
    scale[4, 1] *= 2


def exchange_two(scale: np.ndarray) -> None:
    """Two groups of every row with each other's scale."""
    scale[:, [0, 1]] = scale[:, [1, 0]]


def negate_one(scale: np.ndarray) -> None:
    """One group upside down."""
    scale[4, 1] *= -1


def negate_row(scale: np.ndarray) -> None:
    """One row upside down."""
    scale[4] *= -1


def roll_rows(scale: np.ndarray) -> None:
    """Every row with the scales of the one before."""
    scale[:] = np.roll(scale, 1, axis=0)


def next_above(scale: np.ndarray) -> None:
    """Every scale the next larger number of its dtype."""
    scale[:] = np.nextafter(scale, np.full_like(scale, np.inf))


def zero_points_off(tensor: QuantizedTensor) -> QuantizedTensor:
    """Every zero point one too large: a container that stores z - 1, read as if it stored z."""
    if scheme_of(tensor).symmetric:
        raise NotApplicable("no zero points")
    return with_array(tensor, "zero", np.minimum(tensor.zero + 1, scheme_of(tensor).levels - 1).astype(np.uint8))


def codes_off(tensor: QuantizedTensor) -> QuantizedTensor:
    """Every code one too large: the same mistake on a grid without zero points."""
    return with_codes(tensor, np.minimum(tensor.codes.astype(int) + 1, scheme_of(tensor).levels - 1).astype(np.uint8))


GROSS: Mapping[str, tuple[str, Change]] = {
    "10 % of codes shifted by 2": (LARGE, shifted(0.1, 2)),
    "pairs of codes swapped": (TENSOR, swap_neighbours),
    "halves of 32 codes swapped": (TENSOR, swap_halves),
    "the last group of every row zeroed": (TENSOR, zero_last_group),
    "scales of two groups exchanged": (LARGE, with_scales(exchange_two)),
    "scales of every row from the row before": (TENSOR, with_scales(roll_rows)),
    "zero points off by one": (LARGE, zero_points_off),
    "codes off by one": (LARGE, codes_off),
}
SUBTLE: Mapping[str, tuple[str, Change]] = {
    "2 % of codes shifted by 2": (LARGE, shifted(0.02, 2)),
    "0.5 % of codes shifted by 1": (TENSOR, shifted(0.005, 1)),
    "one code by one step": (TENSOR, change_one_code),
    "codes of one row reversed": (TENSOR, reverse_row),
    "one group's scale doubled": (TENSOR, with_scales(double_one)),
    "one group's scale negated": (TENSOR, with_scales(negate_one)),
    "one row's scales negated": (TENSOR, with_scales(negate_row)),
    "every scale one ulp larger": (TENSOR, with_scales(next_above)),
}

FAULTS = tuple(
    Fault(name=name, kind="codes", level=Level.CODES, change=change, tensor=tensor, trials=trials)
    for changes, trials in ((GROSS, CODE_TRIALS), (SUBTLE, SUBTLE_CODE_TRIALS))
    for name, (tensor, change) in changes.items()
)

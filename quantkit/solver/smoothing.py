"""Smoothing: the columns of a layer times s, and what feeds the layer divided by s. The function stays the same.

    W x = (W diag(s)) (x / s)

A column that meets large inputs gets more of its group's grid, and one that meets small inputs less. The division
costs nothing at run time because it is folded into what comes before (Lin et al. 2023, "AWQ", section 3.2; together
with GPTQ it is the S of S-P-GPTQ, MiniCPM4 report 4.1.2):

    q, k, v     the weight of the norm in front of attention
    o           the rows of v; query heads that share a key-value head share their scales
    gate, up    the weight of the norm in front of the MLP
    down        the rows of up

A norm keeps its dtype, so its quotient is rounded: g' = round(g / s). Its readers are then multiplied by the exact
ratio g / g' instead of s, and nothing is lost but float32 rounding. `quantkit.solver.smoothing_search` chooses s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from quantkit.models.spec import NORM_ROLES, ModelSpec, Role
from quantkit.protocols import Method
from quantkit.tensors.cast import FLOAT16, FLOAT32
from quantkit.tensors.scheme import Scheme
from quantkit.tensors.views import BFLOAT16

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.models.torch_model import Block

LOWEST_NORMAL: Mapping[np.dtype, float] = {BFLOAT16: 2.0**-126, FLOAT16: 2.0**-14, FLOAT32: 2.0**-126}

Wanted = Mapping[str, tuple[Scheme, Method]]
"""Scheme and method of every weight that is quantized, by name."""


def smoothable(spec: ModelSpec, wanted: Wanted, layer: int, smooth: bool | None) -> tuple[Role, ...]:
    """Whose outputs may be divided in block `layer`; some of the keys of `ModelSpec.readers`.

    All layers behind it must be quantized, by calibrated methods, because one that stays as it is would have to
    change as well. For the same reason it must itself be quantized, unless it is a norm.

    Args:
        spec: the model.
        wanted: what is quantized, and how.
        layer: number of the block.
        smooth: whether to smooth; None = where all methods behind ask for it.
    """

    readers = spec.readers

    def may_be(before: Role) -> bool:
        names = [spec.weight_name(layer, role) for role in readers[before]]
        if not all(name in wanted for name in names):
            return False
        if before not in NORM_ROLES and spec.weight_name(layer, before) not in wanted:
            return False
        methods = [wanted[name][1] for name in names]
        asked = smooth if smooth is not None else all(method.scales_inputs for method in methods)
        return asked and all(method.needs_calibration for method in methods)

    return tuple(before for before in readers if may_be(before))


def folded_norm(weight: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A norm's weight divided by `scale` and rounded to `dtype`, and the exact ratio to what it was.

    Channels whose quotient `dtype` does not hold as a normal number keep their weight, with ratio 1: it would lose
    bits or vanish.

    Args:
        weight: float32 [size], values of `dtype`.
        scale: float32 [size].
        dtype: bfloat16, float16 or float32.

    Returns:
        The new weight in `dtype`, and weight / new weight in float32.
    """
    with np.errstate(all="ignore"):
        divided = np.divide(weight, scale, dtype=np.float64).astype(dtype)
        magnitude = np.abs(divided.astype(np.float64))
        sound = np.isfinite(magnitude) & (magnitude >= LOWEST_NORMAL[dtype])
        ratio = np.divide(weight, divided, dtype=np.float64).astype(np.float32)
        sound &= np.isfinite(ratio) & (ratio > 0)
    return np.where(sound, divided, weight.astype(dtype)), np.where(sound, ratio, np.float32(1))


def smooth(block: Block, scales: Mapping[Role, np.ndarray], dtypes: Mapping[Role, np.dtype]) -> dict[Role, np.ndarray]:
    """Divide and multiply the weights of `block` in place.

    Args:
        block: as in the checkpoint.
        scales: float32, one scale for each output of some of the keys of `ModelSpec.readers`.
        dtypes: of the norms in the checkpoint.

    Returns:
        The new weights of the norms among them, in their dtypes.
    """
    import torch  # noqa: PLC0415 - round-to-nearest does without it

    norms, spec = {}, block.spec
    for before, scale in scales.items():
        weight = block.weight(before)
        if before in NORM_ROLES:
            norms[before], scale = folded_norm(weight.cpu().numpy(), scale, dtypes[before])  # noqa: PLW2901
            weight.copy_(torch.from_numpy(norms[before].astype(np.float32)))
        else:
            weight.div_(torch.from_numpy(scale).to(weight.device)[:, None])
        for reader in spec.readers[before]:
            columns = block.weight(reader)
            factors = spread(torch.from_numpy(scale), columns.shape[1], spec.head_dim)
            columns.mul_(factors.to(columns.device))
    return norms


def spread(scale: Tensor, cols: int, head_dim: int) -> Tensor:
    """`scale` [outputs] for each of `cols` input columns; more of them only where query heads share a head of v."""
    shared = cols // len(scale)
    return scale if shared == 1 else scale.view(-1, head_dim).repeat_interleave(shared, dim=0).flatten()

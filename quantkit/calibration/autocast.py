"""Calibration forwards in bfloat16, where the CPU has instructions for its products: more than twice as fast.

Models are trained and served with activations rounded like that. Rounding moves an activation by a thousandth or two,
4-bit weights by a tenth. Residual streams, statistics and everything that solvers do stay in float32. Other CPUs would
emulate the products, slower than float32's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; False where this torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    found: Mapping[str, object] = capabilities() if capabilities is not None else {}
    return any(bool(found.get(name)) for name in INSTRUCTIONS)


def rounded_products(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[object]:
    """Within it, and on this thread, layers and attention compute in bfloat16 if so wished."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

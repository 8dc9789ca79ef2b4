"""Random scales to smooth a block by."""

from __future__ import annotations

import numpy as np

from quantkit.models.spec import Role
from quantkit.models.torch_model import Block


def random_scales(block: Block, seed: int = 0) -> dict[Role, np.ndarray]:
    """Scales between 1/20 and 20 for everything that can be divided."""
    rng = np.random.default_rng(seed)
    sizes = {
        Role.ATTN_NORM: block.input_layernorm.weight.shape[0],
        Role.V: block.self_attn.v_proj.weight.shape[0],
        Role.MLP_NORM: block.post_attention_layernorm.weight.shape[0],
        Role.UP: block.mlp.up_proj.weight.shape[0],
    }
    return {role: np.exp(rng.uniform(-3, 3, size)).astype(np.float32) for role, size in sizes.items()}

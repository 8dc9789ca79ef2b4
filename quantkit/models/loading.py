"""A checkpoint's weights as float32 torch modules: one block, or the whole model."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from quantkit.errors import NonFiniteValues
from quantkit.models.checkpoint import Checkpoint
from quantkit.models.spec import FINAL_NORM, architecture
from quantkit.models.torch_model import Block, MiniCPM, RMSNorm
from quantkit.tensors.views import BFLOAT16, QuantizedView, Weight

CPU = torch.device("cpu")


def read_float32(weight: Weight) -> np.ndarray:
    """All values of a weight in float32, dequantized where it is quantized; raises `NonFiniteValues` with its name."""
    values = weight.read().dequantized() if isinstance(weight, QuantizedView) else _widened(weight.read())
    if not np.isfinite(values).all():
        raise NonFiniteValues(f"{weight.name}: the weight holds NaN or infinity")
    return values


def load_block(checkpoint: Checkpoint, layer: int) -> Block:
    """Block number `layer`, in inference mode; nothing else is read."""
    spec = checkpoint.spec
    with torch.device("meta"):
        block = cast(Block, architecture(spec.architecture).block(spec))
    weights = {name: checkpoint.weights[spec.weight_name(layer, role)] for role, name in spec.layer_names.items()}
    block.load_state_dict({name: _tensor(weight) for name, weight in weights.items()}, assign=True)
    return block.eval().requires_grad_(False)


def load_final_norm(checkpoint: Checkpoint) -> RMSNorm:
    """The norm behind the last block."""
    norm = RMSNorm(checkpoint.spec.hidden_size, checkpoint.spec.rms_norm_eps).requires_grad_(False)
    norm.weight.copy_(torch.from_numpy(read_float32(checkpoint.weights[FINAL_NORM])))
    return norm


def load_head(checkpoint: Checkpoint) -> tuple[RMSNorm, torch.Tensor]:
    """The last norm, and the head's weight, float32 [vocab, hidden]: what turns hidden states into logits."""
    head = checkpoint.weights[checkpoint.spec.head_name]
    return load_final_norm(checkpoint), torch.from_numpy(read_float32(head))


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> MiniCPM:
    """The whole model, in inference mode: 4 bytes of memory per weight, or 2 in bfloat16."""
    with torch.device("meta"):
        model = MiniCPM(checkpoint.spec)
    model.load_state_dict({name: _tensor(weight).to(dtype) for name, weight in checkpoint.weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _widened(values: np.ndarray) -> np.ndarray:
    if values.dtype != BFLOAT16:
        return np.asarray(values, np.float32)
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float().numpy()  # ten times as fast


def _tensor(weight: Weight) -> torch.Tensor:
    # A copy in torch's own memory: BLAS may round differently at other alignments, and numpy's vary.
    return torch.from_numpy(read_float32(weight)).clone()

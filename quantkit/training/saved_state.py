"""The state of a training as bytes, from which it goes on to the same weights, bit for bit on the CPU.

The bytes are for quantkit alone and for one run: `quantkit.artifacts.journal` vouches for them, so they are not
checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

LENGTH_BYTES = 8


@dataclass(slots=True)
class Position:
    """How far a training is.

    stage, step: stages that are done, and steps of the next; of reconstruction, blocks. curve: [step, stage, loss] of
    every step so far. measured: what `quantkit.training.measuring` found, by name.
    """

    stage: int = 0
    step: int = 0
    curve: list[tuple[int, str, float]] = field(default_factory=list)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)


def encoded(position: Position, tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Buffers that follow each other: a position and names as JSON behind its length, then float32 tensors."""
    head = {
        "stage": position.stage,
        "step": position.step,
        "curve": position.curve,
        "measured": position.measured,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    line = json.dumps(head).encode()
    values = (np.ascontiguousarray(tensor.detach().cpu().numpy()).data for tensor in tensors.values())
    return [len(line).to_bytes(LENGTH_BYTES, "little"), line, *values]


def decoded(data: memoryview) -> tuple[Position, dict[str, Tensor]]:
    """Inverse of `encoded`."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    head: dict[str, Any] = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length].tobytes())
    place = LENGTH_BYTES + length
    tensors = {}
    for name, shape in head["tensors"].items():
        values = np.frombuffer(data, np.float32, int(np.prod(shape, dtype=np.int64)), place).reshape(shape)
        tensors[name] = torch.tensor(values)
        place += values.nbytes
    curve = [(int(step), str(stage), float(loss)) for step, stage, loss in head["curve"]]
    return Position(head["stage"], head["step"], curve, head["measured"]), tensors

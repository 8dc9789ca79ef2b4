"""What a stateful decoder in OpenVINO's IR is given at every step, whoever computes it."""

from __future__ import annotations

import numpy as np

LOGITS = "logits"
TOKENS = "input_ids"


def step_inputs(part: list[int], before: int) -> dict[str, np.ndarray]:
    """The inputs of a step of one row, by name: the tokens `part` behind `before` others that the state holds."""
    total = before + len(part)
    return {
        TOKENS: np.array([part], np.int64),
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(before, total, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }

"""The tables of rotary embedding that a graph looks its positions up in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.exporters.onnx.elements import ARRAYS, Element
from quantkit.models.spec import ModelSpec


def tables(spec: ModelSpec, element: Element, context: int, length: int) -> Mapping[str, np.ndarray]:
    """ "cos" and "sin" [context, head_dim / 2], as a text of `length` tokens is turned.

    Angles in float32, in the order of operations of OpenBMB's code: position times (1 / factor), times the frequency.
    The attention factor is multiplied in.
    """
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    frequency = np.float32(1) / np.float32(spec.rope.base(length, spec.head_dim)) ** exponent
    factors = np.array(spec.rope.factors(length) or [1.0], np.float32)
    angles = np.arange(context, dtype=np.float32)[:, None] * (np.float32(1) / factors) * frequency
    wide, dtype = angles.astype(np.float64), ARRAYS[element]
    amplitude = spec.rope.attention_factor
    return {"cos": (np.cos(wide) * amplitude).astype(dtype), "sin": (np.sin(wide) * amplitude).astype(dtype)}

"""What each operator computes: a function of its attributes and inputs that gives the list of its outputs.

Source: OpenVINO's operator specifications, docs.openvino.ai "Available Operation Sets".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from quantkit.runtimes.openvino_numpy.constants import DTYPES

Data = Mapping[str, str]
Arrays = Sequence[np.ndarray]
Operator = Callable[[Data, Arrays], list[np.ndarray]]


def _yes(data: Data, key: str) -> bool:
    return data.get(key, "false") in ("true", "1")


def _ints(values: np.ndarray) -> list[int]:
    return [int(value) for value in values.reshape(-1)]


def _each(function: Callable[..., np.ndarray]) -> Operator:
    """An operator that works on elements, with broadcasting as numpy has it."""

    def compute(_data: Data, inputs: Arrays) -> list[np.ndarray]:
        return [np.asarray(function(*inputs))]

    return compute


def _convert(data: Data, inputs: Arrays) -> list[np.ndarray]:
    return [inputs[0].astype(DTYPES[data["destination_type"]])]


def _swish(_data: Data, inputs: Arrays) -> list[np.ndarray]:
    x = inputs[0]
    half = x.dtype.type(0.5)
    return [x * (half + half * np.tanh(half * x))]


def _concat(data: Data, inputs: Arrays) -> list[np.ndarray]:
    return [np.concatenate(inputs, axis=int(data["axis"]))]


def _gather(_data: Data, inputs: Arrays) -> list[np.ndarray]:
    x, indices, axis = inputs
    return [np.take(x, indices, axis=int(axis))]


def _reshape(data: Data, inputs: Arrays) -> list[np.ndarray]:
    x, wanted = inputs
    shape = _ints(wanted)
    if _yes(data, "special_zero"):
        shape = [x.shape[axis] if length == 0 else length for axis, length in enumerate(shape)]
    return [x.reshape(shape)]


def _transpose(_data: Data, inputs: Arrays) -> list[np.ndarray]:
    return [inputs[0].transpose(_ints(inputs[1]))]


def _unsqueeze(_data: Data, inputs: Arrays) -> list[np.ndarray]:
    return [np.expand_dims(inputs[0], tuple(_ints(inputs[1])))]


def _shape_of(data: Data, inputs: Arrays) -> list[np.ndarray]:
    return [np.array(inputs[0].shape, DTYPES[data.get("output_type", "i64")])]


def _broadcast(data: Data, inputs: Arrays) -> list[np.ndarray]:
    x, shape = inputs[0], tuple(_ints(inputs[1]))
    if data.get("mode") == "bidirectional":
        shape = np.broadcast_shapes(x.shape, shape)
    return [np.broadcast_to(x, shape)]


def _range(data: Data, inputs: Arrays) -> list[np.ndarray]:
    start, stop, step = (int(value) for value in inputs)
    return [np.arange(start, stop, step, dtype=DTYPES[data["output_type"]])]


def _reduced(function: Callable[..., np.ndarray]) -> Operator:
    def compute(data: Data, inputs: Arrays) -> list[np.ndarray]:
        axes = tuple(_ints(inputs[1]))
        return [np.asarray(function(inputs[0], axis=axes, keepdims=_yes(data, "keep_dims")))]

    return compute


def _variadic_split(_data: Data, inputs: Arrays) -> list[np.ndarray]:
    x, axis, lengths = inputs
    ends = np.cumsum(_ints(lengths))[:-1]
    return np.split(x, ends, axis=int(axis))


def _matmul(data: Data, inputs: Arrays) -> list[np.ndarray]:
    left, right = inputs
    left = left.swapaxes(-1, -2) if _yes(data, "transpose_a") else left
    right = right.swapaxes(-1, -2) if _yes(data, "transpose_b") else right
    return [left @ right]


def _attention(data: Data, inputs: Arrays) -> list[np.ndarray]:
    """softmax(q k^T / sqrt(D) + mask) v of q [..., T, D], k and v [..., S, D]; a head at a time."""
    q, k, v = inputs[:3]
    new, total = q.shape[-2], k.shape[-2]
    mask = np.zeros((new, total), q.dtype)
    if len(inputs) > 3:
        mask = inputs[3] if inputs[3].dtype != np.bool_ else np.where(inputs[3], 0, -np.inf).astype(q.dtype)
    if _yes(data, "causal"):
        mask = np.where(np.tri(new, total, dtype=bool), 0, -np.inf).astype(q.dtype)
    mask = np.broadcast_to(mask, (*q.shape[:-1], total))
    scale = inputs[4].reshape(()) if len(inputs) > 4 else q.dtype.type(q.shape[-1] ** -0.5)
    mixed = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for head in np.ndindex(q.shape[:-2]):
        scores = q[head] @ k[head].T * scale + mask[head]
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[head] = shares @ v[head] / shares.sum(axis=-1, keepdims=True)
    return [mixed]


OPERATORS: Mapping[str, Operator] = {
    "Add": _each(operator.add),
    "Broadcast": _broadcast,
    "Concat": _concat,
    "Convert": _convert,
    "Cos": _each(np.cos),
    "Divide": _each(operator.truediv),
    "Gather": _gather,
    "Greater": _each(operator.gt),
    "LessEqual": _each(operator.le),
    "LogicalAnd": _each(np.logical_and),
    "MatMul": _matmul,
    "Maximum": _each(np.maximum),
    "Multiply": _each(operator.mul),
    "Power": _each(operator.pow),
    "Range": _range,
    "ReduceMax": _reduced(np.max),
    "ReduceMean": _reduced(np.mean),
    "Reshape": _reshape,
    "ScaledDotProductAttention": _attention,
    "Select": _each(np.where),
    "ShapeOf": _shape_of,
    "Sin": _each(np.sin),
    "Sqrt": _each(np.sqrt),
    "Subtract": _each(operator.sub),
    "Swish": _swish,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "VariadicSplit": _variadic_split,
}
"""Operators without a state, by type."""

"""Operators that take several elements together: sums, means, norms, softmax, products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from quantkit.errors import MalformedFile
from quantkit.runtimes.onnx_numpy.call import Call, Operator, Operators, allow, axes_of, axis_of

FLOAT32 = np.dtype(np.float32)


def widened(value: np.ndarray) -> np.ndarray:
    """What narrower floats are computed in, float32; other dtypes as they are."""
    return value if value.dtype == np.float64 or value.dtype.kind in "iub" else value.astype(np.float32, copy=False)


def _reduction(function: Callable[..., np.ndarray]) -> Operator:
    def operator(call: Call) -> list[np.ndarray]:
        """Over the axes of the second input or, before opset 18, of the attribute; all of them where neither is."""
        value = call.value(0)
        axes: Sequence[int] | None = call.numbers("axes")
        if call.optional(1) is not None:
            axes = call.integers(1)
        if not axes and call.integer("noop_with_empty_axes", 0):
            return [value]
        over = axes_of(axes, value.ndim) if axes else None
        found = function(widened(value), axis=over, keepdims=bool(call.integer("keepdims", 1)))
        return [np.asarray(found).astype(value.dtype, copy=False)]

    return operator


def softmax(value: np.ndarray, axis: int = -1) -> np.ndarray:
    """e^x over the sum of it along an axis, from the largest x on."""
    # Where nothing may be looked at all are -inf: they stay no numbers, as engines have them.
    with np.errstate(invalid="ignore"):
        powers = np.exp(value - value.max(axis, keepdims=True))
        found: np.ndarray = powers / powers.sum(axis, keepdims=True)
    return found


def _softmax(call: Call) -> list[np.ndarray]:
    value = call.value(0)
    axis = axis_of(call.integer("axis", -1), value.ndim)
    return [softmax(widened(value), axis).astype(value.dtype, copy=False)]


def _rms_norm(call: Call) -> list[np.ndarray]:
    """x / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on, in float32."""
    call.attribute("stash_type")
    return [normed(call.value(0), call.value(1), call)]


def normed(value: np.ndarray, scale: np.ndarray, call: Call) -> np.ndarray:
    """The RMS norm that the attributes of `call` describe, in the dtype of `value`."""
    axis, wide = axis_of(call.integer("axis", -1), value.ndim), widened(value)
    over = tuple(range(axis, value.ndim))
    mean = np.square(wide).mean(over, keepdims=True)
    found: np.ndarray = wide / np.sqrt(mean + np.float32(call.number("epsilon", 1e-5))) * widened(scale)
    return found.astype(value.dtype, copy=False)


def _skip_rms_norm(call: Call) -> list[np.ndarray]:
    """The norm of a sum, and as its fourth output the sum."""
    total = call.value(0) + call.value(1)
    bias = call.optional(3)
    if bias is not None:
        total = total + bias
    nothing = np.empty(0, np.float32)  # mean and inverse deviation, which only training reads
    return [normed(total, call.value(2), call), nothing, nothing, total][: max(1, call.outputs)]


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one @ other, in float32 where they are narrower floats."""
    if one.dtype != other.dtype:
        raise MalformedFile(f"it multiplies {one.dtype} by {other.dtype}")
    if one.ndim and other.ndim:
        ahead = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
        allow((*ahead, *one.shape[-2:-1], *(other.shape[-1:] if other.ndim > 1 else ())), FLOAT32)
    return np.asarray(np.matmul(widened(one), widened(other))).astype(one.dtype, copy=False)


def _matmul(call: Call) -> list[np.ndarray]:
    return [product(call.value(0), call.value(1))]


def _gemm(call: Call) -> list[np.ndarray]:
    one, other, added = call.value(0), call.value(1), call.optional(2)
    if one.ndim != 2 or other.ndim != 2:
        raise MalformedFile(f"it multiplies values of {one.ndim} and {other.ndim} axes")
    one = one.T if call.integer("transA", 0) else one
    other = other.T if call.integer("transB", 0) else other
    found = product(one, other) * one.dtype.type(call.number("alpha", 1.0))
    scale = one.dtype.type(call.number("beta", 1.0))
    return [found if added is None else found + added * scale]


def _top(call: Call) -> list[np.ndarray]:
    """The largest along an axis, from the largest on, and their numbers; of equal ones the first."""
    value, (count,) = call.value(0), call.integers(1)
    axis = axis_of(call.integer("axis", -1), value.ndim)
    if value.dtype.kind != "f" or call.integer("largest", 1) != 1 or call.integer("sorted", 1) != 1:
        raise MalformedFile(f"it asks for the smallest of {value.dtype}, or in any order, which is not evaluated")
    if not 0 <= count <= value.shape[axis]:
        raise MalformedFile(f"it asks for {count} values of {value.shape[axis]}")
    order = np.take(np.argsort(-value, axis, kind="stable"), range(count), axis)
    return [np.take_along_axis(value, order, axis), order.astype(np.int64)]


def _max_pool(call: Call) -> list[np.ndarray]:
    """The largest of each window along the last of three axes; beyond its ends there is nothing."""
    value, sizes, steps, pads = call.value(0), *(call.numbers(name) for name in ("kernel_shape", "strides", "pads"))
    if value.ndim != 3 or value.dtype.kind != "f" or None in (sizes, steps, pads):
        raise MalformedFile(
            f"it pools {value.dtype} of {value.ndim} axes, or by default numbers, which is not evaluated"
        )
    (size,), (step,), (before, after) = cast("tuple[tuple[int, ...], ...]", (sizes, steps, pads))
    if min(size, step) < 1 or not 0 <= min(before, after) <= max(before, after) < size:
        raise MalformedFile(f"it pools {size} values {step} apart, {before} and {after} beyond the ends")
    allow((*value.shape[:2], value.shape[2] + before + after), value.dtype)
    padded = np.pad(value, ((0, 0), (0, 0), (before, after)), constant_values=-np.inf)
    return [sliding_window_view(padded, size, axis=2)[:, :, ::step].max(axis=-1)]


def _cumulative(call: Call) -> list[np.ndarray]:
    value, (axis,) = call.value(0), call.integers(1)
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        raise MalformedFile("its sums are exclusive or in reverse, which is not evaluated")
    return [np.cumsum(value, axis_of(axis, value.ndim), dtype=value.dtype)]


REDUCTIONS: Operators = {
    ("", "ReduceMean"): _reduction(np.mean),
    ("", "ReduceSum"): _reduction(np.sum),
    ("", "ReduceMax"): _reduction(np.max),
    ("", "ReduceMin"): _reduction(np.min),
    ("", "Softmax"): _softmax,
    ("", "CumSum"): _cumulative,
    ("", "TopK"): _top,
    ("", "MaxPool"): _max_pool,
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
}

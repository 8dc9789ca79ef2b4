"""Operators that work on each element: values of several inputs are broadcast, and all have one dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

from quantkit.errors import MalformedFile
from quantkit.runtimes.onnx_numpy.call import Call, Operator, Operators, allow
from quantkit.runtimes.onnx_numpy.stored_tensors import DTYPES


def _checked(values: Sequence[np.ndarray], *, dtypes: bool = True) -> tuple[int, ...]:
    """The shape that they have together; raises `MalformedFile` for dtypes that differ, or too large a result."""
    if dtypes and len({value.dtype for value in values}) > 1:
        raise MalformedFile(f"its inputs are {' and '.join(str(value.dtype) for value in values)}")
    shape = np.broadcast_shapes(*(value.shape for value in values))
    allow(shape, max((value.dtype for value in values), key=lambda dtype: dtype.itemsize))
    return shape


Function = Callable[..., np.ndarray]


def _binary(function: Function) -> Operator:
    def operator(call: Call) -> list[np.ndarray]:
        one, other = call.value(0), call.value(1)
        _checked([one, other])
        return [np.asarray(function(one, other))]

    return operator


def _unary(function: Function) -> Operator:
    def operator(call: Call) -> list[np.ndarray]:
        value = call.value(0)
        return [np.asarray(function(value)).astype(value.dtype, copy=False)]

    return operator


def _any_number(function: Function) -> Operator:
    def operator(call: Call) -> list[np.ndarray]:
        values = call.values()
        _checked(values)
        return [np.asarray(reduce(function, values))]

    return operator


def _divided(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The quotient; that of integers is cut toward zero."""
    quotient: np.ndarray
    if one.dtype.kind not in "iu":
        quotient = one / other
    elif not other.all():
        raise MalformedFile("it divides integers by zero")
    else:
        quotient = (np.sign(one) * np.sign(other) * (abs(one) // abs(other))).astype(one.dtype)
    return quotient


def _remainder(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of integers, with the sign of the divisor."""
    if one.dtype.kind not in "iu" or not other.all():
        raise MalformedFile(f"it divides {one.dtype}, or by zero")
    found: np.ndarray = np.mod(one, other)
    return found


def _power(call: Call) -> list[np.ndarray]:
    """The exponent may have a dtype of its own."""
    base, exponent = call.value(0), call.value(1)
    _checked([base, exponent], dtypes=False)
    if base.dtype.kind in "iu" and (exponent < 0).any():
        raise MalformedFile("it takes an integer to a negative power")
    return [np.asarray(np.power(base, exponent.astype(base.dtype)))]


def _sigmoid(value: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), from e^-|x|, which cannot overflow."""
    small = np.exp(-np.abs(value))
    one = np.ones((), value.dtype)
    found: np.ndarray = np.where(value >= 0, one, small) / (one + small)
    return found


def _where(call: Call) -> list[np.ndarray]:
    condition, one, other = call.value(0), call.value(1), call.value(2)
    if condition.dtype != np.bool_:
        raise MalformedFile(f"its condition is {condition.dtype}")
    _checked([one, other])
    _checked([condition, one, other], dtypes=False)
    return [np.where(condition, one, other)]


def _clip(call: Call) -> list[np.ndarray]:
    value, low, high = call.value(0), call.optional(1), call.optional(2)
    _checked([bound for bound in (value, low, high) if bound is not None])
    if low is not None:
        value = np.maximum(value, low)
    return [np.asarray(value if high is None else np.minimum(value, high))]


def _shifted(call: Call) -> list[np.ndarray]:
    one, other, direction = call.value(0), call.value(1), call.attribute("direction")
    _checked([one, other])
    if direction not in ("LEFT", "RIGHT") or one.dtype.kind != "u":
        raise MalformedFile(f"it shifts {one.dtype} to {direction!r}")
    return [np.asarray(np.left_shift(one, other) if direction == "LEFT" else np.right_shift(one, other))]


def _cast(call: Call) -> list[np.ndarray]:
    """To the dtype that `to` says; `saturate` is about dtypes of eight bits that are not evaluated."""
    call.attribute("saturate")
    kind = call.integer("to")
    if kind not in DTYPES:
        raise MalformedFile(f"it casts to type {kind}, which is not evaluated")
    value = call.value(0)
    allow(value.shape, DTYPES[kind])
    return [value.astype(DTYPES[kind])]


def _cast_like(call: Call) -> list[np.ndarray]:
    call.attribute("saturate")
    return [call.value(0).astype(call.value(1).dtype)]


_BINARY: Mapping[str, Function] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divided,
    "Mod": _remainder,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}
_UNARY: Mapping[str, Function] = {
    "Sqrt": np.sqrt,
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Cos": np.cos,
    "Sin": np.sin,
    "Tanh": np.tanh,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Not": np.logical_not,
    "Reciprocal": np.reciprocal,
    "Sigmoid": _sigmoid,
}
ARITHMETIC: Operators = {
    **{("", name): _binary(function) for name, function in _BINARY.items()},
    **{("", name): _unary(function) for name, function in _UNARY.items()},
    ("", "Min"): _any_number(np.minimum),
    ("", "Max"): _any_number(np.maximum),
    ("", "Pow"): _power,
    ("", "Where"): _where,
    ("", "Clip"): _clip,
    ("", "BitShift"): _shifted,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast_like,
}
